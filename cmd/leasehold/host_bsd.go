//go:build unix && !linux

package main

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// On these systems the first process adopts and collects orphans. A process that leaves the command's process group
// cannot be found.

func adopt() error { return nil }

func sysProcAttr(foreground bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Foreground: foreground}
}

func started(group, watchdog int) []process { return nil }

func reapOrphans(...int) int { return 0 }

// killSurvivors kills the process group, and reports whether it is gone, except perhaps for processes that have ended.
func killSurvivors(tool, group int, mark string) bool {
	if group == 0 {
		return true
	}
	err := syscall.Kill(-group, syscall.SIGKILL)
	return err == nil || errors.Is(err, syscall.ESRCH)
}

// clock reads a clock that all processes share; on macOS it goes on while the machine sleeps.
func clock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return time.Duration(time.Now().UnixNano())
	}
	return time.Duration(ts.Nano())
}
