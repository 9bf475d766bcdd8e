"""Material of the person-search benchmark: rendered scenes, a real video with pseudo labels, and how the network is trained on them."""
