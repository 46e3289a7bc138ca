"""The WAN lab, load scenarios, and the comparison with peers."""
