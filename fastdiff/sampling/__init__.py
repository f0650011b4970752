"""Sampling: a plan, a network and a loop over lanes that step through the plan.

A run has B lanes. A lane holds one sample with its own row, seed, id, guidance strength and slots,
and one step of all lanes is a network call and a kernel:

    out = network(input_scale·x, t[row], cond)
    (x, slots, next input, row) <- reverse_step(x, out, table, row)

The host sets every lane's row, so it knows without reading the device how many steps pass until a
lane is done and whether both guidance halves are needed. Between two such events nothing is read
and nothing is allocated. A lane that is done stays on its plan's closing row, the identity, until
another sample is put into it. One call, a stream, and a server of requests with their own steps,
starts and strengths therefore share one loop.

    requests.py        samples that wait for lanes, and where they come from
    arguments.py       what a caller passes for samples, checked
    plans.py           the plan that each sample follows
    device_plan.py     the plans of a run, stacked, on the device
    conditions.py      the network's keyword arguments, for both guidance halves
    guidance.py        guidance written into the rows of a plan
    network.py         a user's network: its dtype, one checked call
    model_call.py      how every door calls a user's network
    network_inputs.py  the network's inputs in static buffers, and its calls
    stepper.py         the buffers of a state and one row as one kernel; plans run with hooks
    buffers.py         lanes, and one step of all of them
    graph.py           steps captured as CUDA graphs
    loop.py            lanes filled, stepped and emptied
    engine.py          runs of a network and its plans
    adaptive/          samplers that choose their steps, and noise from a Brownian path
"""
