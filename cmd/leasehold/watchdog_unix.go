//go:build unix

package main

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// A watchdog is a process beside run that kills the command when run cannot: because it was killed or stopped, or gets
// no CPU time. It reads lines "GROUP UNTIL": kill the command at UNTIL by clock(), unless another line comes before;
// GROUP is its process group, 0 for none. At the end of its input, when run is gone, it kills at once.
type watchdog struct {
	cmd  *exec.Cmd
	pipe *os.File
	mark string // an environment variable, NAME=VALUE, that the command and its descendants inherit

	group int           // that was sent last
	until time.Duration // the same
}

const (
	watchdogArg = "__watchdog"
	markName    = "LEASEHOLD_RUN_ID"
	// killTimeout bounds how long a watchdog without its parent tries to kill processes that do not end.
	killTimeout = 10 * time.Second
)

// isWatchdog reports whether this process is a watchdog.
func isWatchdog() bool { return len(os.Args) == 4 && os.Args[1] == watchdogArg }

func startWatchdog(kept ...*os.File) (*watchdog, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe() // both ends are closed on exec: the command must not keep the watchdog from seeing the end
	if err != nil {
		return nil, err
	}
	defer r.Close()
	mark := markName + "=" + rand.Text()
	d := &watchdog{cmd: exec.Command(self, watchdogArg, strconv.Itoa(os.Getpid()), mark), pipe: w, mark: mark}
	d.cmd.Stdin, d.cmd.Stderr, d.cmd.ExtraFiles = r, os.Stderr, kept
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // out of reach of a terminal's signals
	if err := d.cmd.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("start the watchdog: %w", err)
	}
	return d, nil
}

// pid returns the ID of the watchdog's process, which is that of its group; 0 if there is none.
func (d *watchdog) pid() int {
	if d == nil {
		return 0
	}
	return d.cmd.Process.Pid
}

// guard tells the watchdog to kill group at until. While the command starts, group is 0: then it is found by its mark,
// on Linux. An error means that there is no watchdog any more.
func (d *watchdog) guard(group int, until time.Duration) error {
	if moved := until - d.until; group == d.group && moved > -time.Millisecond && moved < time.Millisecond {
		return nil
	}
	d.group, d.until = group, until
	_, err := fmt.Fprintf(d.pipe, "%d %d\n", group, until)
	return err
}

// idle tells the watchdog that the command has ended, and all that it started.
func (d *watchdog) idle() error { return d.guard(0, 0) }

// close ends the watchdog.
func (d *watchdog) close() {
	d.pipe.Close()
	d.cmd.Wait()
}

// watchdogMain is the main function of the watchdog's process.
func watchdogMain() {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	// Not os.Getppid: if the tool has just been killed, our parent is already the process that adopts orphans.
	tool, err := strconv.Atoi(os.Args[2])
	if err != nil || tool <= 0 {
		os.Exit(exitUsage)
	}
	mark := os.Args[3]
	type line struct {
		group int
		until time.Duration
	}
	lines := make(chan line)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			var l line
			if _, err := fmt.Sscan(in.Text(), &l.group, &l.until); err != nil {
				return
			}
			lines <- l
		}
	}()
	var now line
	for {
		var late <-chan time.Time
		if now.until != 0 {
			late = time.After(max(again, min(look, now.until-clock())))
		}
		select {
		case next, open := <-lines:
			if !open {
				for end := clock() + killTimeout; !killSurvivors(tool, now.group, mark) && clock() < end; {
					time.Sleep(again)
				}
				return
			}
			now = next
		case <-late:
			if clock() >= now.until && killSurvivors(tool, now.group, mark) {
				now = line{}
			}
		}
	}
}
