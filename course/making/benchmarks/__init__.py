"""What `python start.py bench` is made of.

prompts     the texts that are continued
processes   a process for each variant, one at work at a time
decoders    what each variant does
lesson      lesson 14's own step, from its saved notebook
table       from seconds to ratios
machine     what the numbers were measured on

Beside it, to be run on their own: `masks`, the masks of lesson 12, `grading`, a class
to grade, and `serving`, many streams at once, which it asks for by `load`.
"""
