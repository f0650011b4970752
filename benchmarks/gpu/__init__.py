"""What `make gpu-report` measures on a GPU besides the suite, in pieces.

__main__.py            runs one piece
checkpoint.py          the file of a piece or a stage, rewritten after every row
checkpointed_rows.py   measures the rows of a piece into its file
common.py              the device, its sizes, and rows without peers
ceilings.py            piece `ceilings`
kernels.py             pieces `kernels-float32` and `kernels-bfloat16`
loops.py               piece `loops`
first.py               piece `first`: what is worth measuring in the first minutes
first_run/             the stages of scripts/gpu_first_run.sh
forward_calls.py       piece `networks`
predictions.py         the predicted speeds, and whether the rows reach them

Without a GPU:

host_times.py          the host's time of launches of Triton kernels
stub_driver.py         a CUDA device that does nothing, for these times and for tests of launches
"""
