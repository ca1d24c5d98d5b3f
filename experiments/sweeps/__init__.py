"""Many runs: named by what they are, done by local processes or a Ray cluster, gathered into tables."""
