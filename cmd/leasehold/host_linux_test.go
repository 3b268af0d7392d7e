package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"
)

// A tree of processes: the tool (100) with a credential plugin, its watchdog and the command, under a parent (1) that
// has others.
var tree = []process{
	{pid: 1, group: 1}, {pid: 2, parent: 1, group: 2},
	{pid: 100, parent: 1, group: 100},
	// a plugin, and what it left its group for
	{pid: 101, parent: 100, group: 100}, {pid: 102, parent: 101, group: 102},
	{pid: 110, parent: 100, group: 110},                                      // the watchdog
	{pid: 120, parent: 100, group: 120}, {pid: 121, parent: 120, group: 120}, // the command and a child
	{pid: 130, parent: 121, group: 130}, {pid: 131, parent: 130, group: 131}, // under timeout(1), with a job of its own
	{pid: 140, parent: 100, group: 140},              // a daemon that the tool adopted
	{pid: 150, parent: 120, group: 120, ended: true}, // a process that waits to be collected
}

// orphaned is the tree once the tool is gone: its children have the parent 1.
func orphaned() []process {
	var all []process
	for _, p := range tree {
		if p.pid != 100 {
			if p.parent == 100 {
				p.parent = 1
			}
			all = append(all, p)
		}
	}
	return all
}

// dying is the tree while the tool is being killed: orphans have the parent 1, and the watchdog still the tool.
func dying() []process {
	all := slices.Clone(tree)
	for i, p := range all {
		if p.pid == 130 || p.pid == 140 {
			all[i].parent = 1
		}
	}
	return all
}

func pids(ps []process) string {
	slices.SortFunc(ps, func(a, b process) int { return cmp.Compare(a.pid, b.pid) })
	var ids []int
	for _, p := range ps {
		ids = append(ids, p.pid)
	}
	return fmt.Sprint(ids)
}

// What a watchdog kills is the command's, whatever became of the tool.
func TestSurvivors(t *testing.T) {
	none := func(int) bool { return false }
	inherited := func(pid int) bool { return pid >= 120 && pid != 131 } // 131 cleared its environment
	for _, tt := range []struct {
		name   string
		all    []process
		tool   int
		group  int
		exists bool
		marked func(int) bool
		want   string
	}{
		{"the tool is stopped", tree, 100, 120, true, none, "[120 121 130 131 140]"},
		{"the tool is gone", orphaned(), 100, 120, false, inherited, "[120 121 130 131 140]"},
		{"the tool is gone before it named the group", orphaned(), 100, 0, false, inherited, "[120 121 130 131 140]"},
		{"the tool is gone before it started a command", orphaned()[:4], 100, 0, false, none, "[]"},
		{"the tool is being killed", dying(), 100, 120, true, inherited, "[120 121 130 131 140]"},
		{"nothing is marked", orphaned(), 100, 120, false, none, "[120 121 130 131]"},
		{"nothing is left", tree[:6], 100, 0, true, none, "[]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := pids(survivors(tt.all, 110, tt.tool, tt.group, tt.exists, tt.marked)); got != tt.want {
				t.Errorf("killed %s, want %s", got, tt.want)
			}
		})
	}
}

// A command that has just started is killed too, if the tool was stopped before it could tell its group.
func TestWatchdogWhileStarting(t *testing.T) {
	d, err := startWatchdog()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if err := d.guard(0, clock()+100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "30")
	cmd.Env = append(os.Environ(), d.mark)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if st := cmd.ProcessState.Sys().(syscall.WaitStatus); st.Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
	if err := d.idle(); err != nil {
		t.Error(err)
	}
}
