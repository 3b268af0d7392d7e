//go:build !linux

package main

import (
	"syscall"
	"time"
)

// bootTime is the wall clock, for want of one that all processes share and that nobody sets.
func bootTime() time.Duration { return time.Duration(time.Now().UnixNano()) }

// sysProcAttr keeps a terminal's interrupt from a candidate, which the demo stops in its own way.
func sysProcAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
