//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// hasTerminal reports whether standard input is a terminal that this process may read. Then the command must be able to
// read it too, and receive Ctrl-C.
func hasTerminal() bool {
	group, err := unix.IoctlGetInt(int(os.Stdin.Fd()), unix.TIOCGPGRP)
	return err == nil && group == syscall.Getpgrp()
}

// takeTerminal makes our process group the foreground group of the terminal again.
func takeTerminal() {
	signal.Ignore(syscall.SIGTTOU) // the signal for a background process that does this
	defer signal.Reset(syscall.SIGTTOU)
	unix.IoctlSetPointerInt(int(os.Stdin.Fd()), unix.TIOCSPGRP, syscall.Getpgrp()) // it may be gone
}

// terminalSize returns the size of the terminal that fd is; ok is false if it is none.
func terminalSize(fd int) (width, height int, ok bool) {
	size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, false
	}
	return int(size.Col), int(size.Row), true
}
