# make run     a working engine from a fresh checkout, and a first container in it
# make test    the whole test suite
# make stop    stop the daemons; containers go on
# make clean   remove everything that these commands made
#
# The engine that runs here has directories of its own (scripts/bench), so it never meets another engine's.

.PHONY: help run test stop clean

help:
	@sed -n '1,4s/^# //p' Makefile

run:
	@scripts/bench run

stop:
	@scripts/bench stop

clean:
	@scripts/bench clean

test:
	@scripts/test
