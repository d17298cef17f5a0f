"""The machine: facts read once, readings taken over and over, and what follows from both."""
