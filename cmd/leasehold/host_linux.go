package main

import (
	"bytes"
	"maps"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// adopt makes this process the parent of every descendant that loses its own, as PID 1 is anyway.
func adopt() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

func sysProcAttr(foreground bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Foreground: foreground, Pdeathsig: syscall.SIGKILL}
}

// processes returns all processes of the machine, or of the PID namespace, as far as /proc shows them.
func processes() []process {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // those that could be read
	var all []process
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
		first, last := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		if first < 0 || last < first {
			continue
		}
		fields := bytes.Fields(stat[last+1:])
		if len(fields) < 3 {
			continue
		}
		p := process{pid: pid, name: string(stat[first+1 : last]), ended: fields[0][0] == 'Z' || fields[0][0] == 'X'}
		p.parent, _ = strconv.Atoi(string(fields[1]))
		p.group, _ = strconv.Atoi(string(fields[2]))
		all = append(all, p)
	}
	return all
}

// descendants returns the descendants of root among all, without processes of the given groups and what they started.
func descendants(all []process, root int, without ...int) []process {
	children := map[int][]process{}
	for _, p := range all {
		if !slices.Contains(without, p.group) {
			children[p.parent] = append(children[p.parent], p)
		}
	}
	found := slices.Clone(children[root])
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i].pid]...)
	}
	return found
}

// started returns the processes that the command of group started, itself included. Our own group is not searched:
// client-go may have started a credential plugin in it.
func started(group, watchdog int) []process {
	all := processes()
	found := descendants(all, os.Getpid(), syscall.Getpgrp(), watchdog)
	for _, p := range all { // also those whose parent is elsewhere
		if p.group == group && !slices.ContainsFunc(found, func(f process) bool { return f.pid == p.pid }) {
			found = append(found, p)
		}
	}
	return slices.DeleteFunc(found, func(p process) bool { return p.ended })
}

// reapOrphans collects those of our children outside the given groups and our own that have ended, and returns the
// number of those that have not. The command left them behind.
func reapOrphans(groups ...int) (left int) {
	self, own := os.Getpid(), syscall.Getpgrp()
	for _, p := range processes() {
		if p.parent != self || p.group == own || slices.Contains(groups, p.group) {
			continue
		}
		if reaped, _ := syscall.Wait4(p.pid, nil, syscall.WNOHANG, nil); reaped != p.pid {
			left++
		}
	}
	return left
}

// survivors returns those of all that the watchdog self has to kill: the process group; the processes that are marked,
// with their descendants; and the descendants of the tool, which adopts all orphans, unless it is being killed: then
// they pass to another process one by one, some while the tool is still our parent.
func survivors(all []process, self, tool, group int, toolExists bool, marked func(pid int) bool) []process {
	var spared []int // groups: the tool's, in which client-go may have started a credential plugin, and our own
	found := map[int]process{}
	add := func(ps ...process) {
		for _, p := range ps {
			if !p.ended && p.pid != self && p.pid != tool {
				found[p.pid] = p
			}
		}
	}
	for _, p := range all {
		if p.pid == tool || p.pid == self {
			spared = append(spared, p.group)
		}
		if group != 0 && p.group == group || marked(p.pid) {
			add(p)
			add(descendants(all, p.pid)...)
		}
	}
	if group != 0 && toolExists {
		add(descendants(all, tool, spared...)...)
	}
	return slices.Collect(maps.Values(found))
}

// hasEnv reports whether a process was given the variable, NAME=VALUE.
func hasEnv(pid int, variable string) bool {
	environ, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	return err == nil && bytes.Contains(append([]byte{0}, environ...), []byte("\x00"+variable+"\x00"))
}

// killSurvivors kills the remaining processes of a command, and reports whether there were none. The caller must be a
// child of tool. Once tool is gone, the caller's parent is another process, whose other descendants must be left alone.
func killSurvivors(tool, group int, mark string) bool {
	if group != 0 {
		syscall.Kill(-group, syscall.SIGKILL) // all at once
	}
	marked := func(pid int) bool { return hasEnv(pid, mark) }
	left := survivors(processes(), os.Getpid(), tool, group, os.Getppid() == tool, marked)
	for _, p := range left {
		syscall.Kill(p.pid, syscall.SIGKILL)
	}
	return len(left) == 0
}

// clock reads a clock that all processes share, and that goes on while the machine sleeps.
func clock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Duration(time.Now().UnixNano()) // a sandbox that filters the call
	}
	return time.Duration(ts.Nano())
}
