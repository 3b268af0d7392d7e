package main

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bootTime returns the time since the machine was started, which is the same in all processes and goes on while they
// are stopped, or the machine sleeps.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // the kernel has had this clock since 2011
	}
	return time.Duration(ts.Nano())
}

// sysProcAttr keeps a terminal's interrupt from a candidate, which the demo stops in its own way, and ends it with the
// demo however that ends.
func sysProcAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
