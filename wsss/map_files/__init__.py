"""Activation maps in files of any project: which file (`files`), what is in it (`layout`), and the maps (`reading`)."""
