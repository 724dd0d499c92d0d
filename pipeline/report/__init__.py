"""HTML pages: the report of a run and the comparison of runs. Each page is one self-contained file.

Imported only when a page is written, because importing matplotlib and Jinja2 is slow.

    page        assembles and writes a page
    kinds       the kinds of what is scored and their colours; imports nothing slow, like stages and published
    scores      the tables: scores, classes, steps, configuration
    pieces      what the steps show: curves, matrices, tables, columns of the image traces, prototype sheets
    images      the IoU of every scored image
    gallery     the choice of images and their tiles
    thumbnails  converts arrays to embedded pictures: images, masks, maps, errors
    slider      the maps of some images, for the browser to cut at any threshold
    traces      the results of each step for an image
    prototypes  the nearest patches of every prototype
    stage_images  the images with the largest gains and losses between stages
    figures     curves and confusion matrices, as SVG in the colours of the page
    compare     several runs side by side
"""
