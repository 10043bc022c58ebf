"""Many runs made at one command: side by side, in several processes, within minutes, one encoder after the other."""
