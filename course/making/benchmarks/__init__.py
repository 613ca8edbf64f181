"""What `python start.py bench` is made of.

prompts     the texts that are continued
processes   a process for each variant, one at work at a time
decoders    what each variant does
lesson      lesson 14's own step, from its saved notebook
table       from seconds to ratios
machine     what the numbers were measured on
"""
