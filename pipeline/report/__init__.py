"""Pages to look at: the report of a run, and the comparison of runs. Each is one HTML file that needs nothing beside it.

Imported only where a page is written: matplotlib and Jinja2 take longer to load than the command line takes to start.

    page        puts a page together and writes it
    kinds       what is scored, by name; light, as are stages and published
    scores      the tables: scores, classes, steps, configuration
    images      the IoU of every scored image
    gallery     which images are shown, and their tiles
    thumbnails  arrays to embedded pictures: images, masks, maps, errors
    traces      what each step made of an image
    prototypes  the nearest patches of every prototype
    stage_images  the images that gained and lost most from one stage to the next
    figures     curves and the confusion matrix, as SVG in the colours of the page
    compare     several runs side by side
"""
