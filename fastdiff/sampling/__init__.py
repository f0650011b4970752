"""Sampling: a plan, a network and a loop over lanes that step through the plan.

A run has B lanes. A lane holds one sample with its own row, seed, id, guidance strength and slots,
and one step of all lanes is a network call and a kernel:

    out = network(input_scale·x, t[row], cond)
    (x, slots, next input, row) <- reverse_step(x, out, table, row)

The host puts samples into lanes and keeps a copy of every lane's row, so it knows without reading
the device how many steps pass until a lane is done and whether both guidance halves are needed.
Until then nothing is read and nothing is allocated. A lane that is done stays on its plan's closing
row, the identity, until another sample is put into it, or goes on along another plan that gets
these rows; nothing reads what it computes. One call, a stream, and a server of requests with their
own steps, starts and strengths therefore share one loop.

To follow one call of `Sampler.sample`, read the modules in this order:

    engine.py          a call becomes a run: options, plans, lanes, loop
    requests.py        the samples of a run that wait for lanes
    arguments.py       what a caller passes for samples, checked
    plans.py           the plan that each sample follows
    device_plan.py     the plans of a run, stacked into one table on the device (rows: row_space.py)
    loop.py            lanes are filled, stepped and emptied
    buffers.py         the lanes, and one step of all of them
    network_inputs.py  a step's first half: the network's inputs in static buffers, and its calls
    stepper.py         a step's second half: a row as one kernel; whole plans for other samplers

What these use:

    options.py         what holds for all samples of a run
    settings.py        the settings of a sampler's plan, and their defaults
    conditions.py      the network's keyword arguments, for both guidance halves
    guidance.py        guidance written into the rows of a plan
    network.py         a user's network: its dtype, one checked call
    graph.py           steps captured as CUDA graphs
    kept.py            buffers and graphs of ended runs, which the next run goes on with
    fingerprint.py     what a captured step depends on besides its buffers
    upload.py          copies to a device that wait for nothing

Outside the loop:

    model_call.py      how all other doors call a user's network
    adaptive/          samplers that choose their steps, and noise from a Brownian path
"""
