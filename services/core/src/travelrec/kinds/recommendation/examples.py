"""Examples of this kind, for the documentation, the demo and the tests."""

PARAMS = {"country": "Canada", "season": "winter"}

RECOMMENDATIONS = [
    "Go skating on the Rideau Canal in Ottawa, the largest naturally frozen rink in the world.",
    "Watch the northern lights from a heated cabin near Yellowknife.",
    "Ski the powder of Whistler Blackcomb and warm up in a village lodge afterwards.",
]
