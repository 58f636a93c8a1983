"""Find the commit of a kernel or of QEMU with which a test began to fail, or ceased to.

git chooses the commits (git-bisect(1)). Each is built in a worktree of its own, and pytest runs the
test on it. All that must survive an interruption is in one folder.
"""
