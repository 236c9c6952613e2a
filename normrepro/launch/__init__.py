"""Many runs: which of them a table needs, what they cost, and starting them side by side."""
