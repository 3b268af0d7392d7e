//go:build unix && !linux

package main

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Without a way to adopt them, the system's first process gets what a command leaves behind, and collects it.

func adopt() error { return nil }

func sysProcAttr(foreground bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Foreground: foreground}
}

func strays(...int) []int { return nil }

func reapStrays(...int) int { return 0 }

// clock reads a clock that all processes share; on macOS it goes on while the machine sleeps.
func clock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return time.Duration(time.Now().UnixNano())
	}
	return time.Duration(ts.Nano())
}
