"""The loop: lanes that step through plans.

A run has B lanes. A lane holds one sample with a row, a seed, an id, a strength and slots of its
own, and one step, for all lanes at once, is a network call and a kernel:

    out = network(input_scale·x, t[row], cond);    (x, slots, next input, row) <- reverse_step(x, out, table, row)

The host set every lane's row, so it knows what each step needs without asking the device: how many
steps pass until a lane is done, and whether both guidance halves are wanted. Between two such
events nothing is read and nothing allocated. A lane that is done stands on its plan's closing row,
the identity, until another sample takes its place; so one call, a stream and a server with requests
of their own steps, starts and strengths are uses of one loop.

    program.py  the plans of a run, stacked, on the device
    network.py  how the network is called: dtype, memory format, compilation, call sizes
    lanes.py    the buffers, and one step
    batch.py    samples that wait for lanes, and where they come from
    graph.py    steps captured as CUDA graphs
    run.py      lanes filled, stepped and emptied
"""
