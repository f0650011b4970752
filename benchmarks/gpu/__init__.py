"""What `make gpu-report` measures on a GPU besides the suite, in pieces.

__main__.py            runs one piece
checkpointed_rows.py   the file of a piece, rewritten after every row
common.py              the device, its sizes, and rows without peers
ceilings.py            piece `ceilings`
kernels.py             pieces `kernels-float32` and `kernels-bfloat16`
loops.py               piece `loops`
forward_calls.py       piece `networks`
predictions.py         the predicted speeds, and whether the rows reach them
"""
