package main

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// adopt makes this process the parent of all that its children leave behind, as PID 1 is anyway.
func adopt() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

func sysProcAttr(foreground bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Foreground: foreground, Pdeathsig: syscall.SIGKILL}
}

// strays returns those of our children that are in other process groups than the given ones and our own, in which client-go
// may have started a credential plugin. They are what the command left behind.
func strays(groups ...int) []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // those that could be read
	self, own := os.Getpid(), syscall.Getpgrp()
	var pids []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue // it has just ended
		}
		// PID (NAME) STATE PPID PGRP …; the name may contain anything.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) < 3 {
			continue
		}
		if parent, _ := strconv.Atoi(string(fields[1])); parent != self {
			continue
		}
		if group, _ := strconv.Atoi(string(fields[2])); group != own && !slices.Contains(groups, group) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// reapStrays collects the strays that have ended and returns how many are left.
func reapStrays(groups ...int) (left int) {
	for _, pid := range strays(groups...) {
		if reaped, _ := syscall.Wait4(pid, nil, syscall.WNOHANG, nil); reaped != pid {
			left++
		}
	}
	return left
}

// clock reads a clock that all processes share, and that goes on while the machine sleeps.
func clock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Duration(time.Now().UnixNano()) // a sandbox that filters the call
	}
	return time.Duration(ts.Nano())
}
