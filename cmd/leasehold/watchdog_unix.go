//go:build unix

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

// A dog is a process beside run that kills the command's process group when run cannot: because it was killed or
// stopped, or gets no time from the machine. It reads lines "GROUP UNTIL": kill GROUP at UNTIL by clock(), unless
// another line comes before; without a group, 0. At the end of its input it kills at once.
type dog struct {
	cmd  *exec.Cmd
	pipe *os.File
	last time.Duration // what it was told
}

const watchdogArg = "__watchdog"

// watching tells whether this process is a watchdog.
func watching() bool { return len(os.Args) == 2 && os.Args[1] == watchdogArg }

func startDog() (*dog, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe() // both ends are closed on exec: the command must not keep the watchdog from seeing ours end
	if err != nil {
		return nil, err
	}
	defer r.Close()
	d := &dog{cmd: exec.Command(self, watchdogArg), pipe: w}
	d.cmd.Stdin, d.cmd.Stderr = r, os.Stderr
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // out of reach of a terminal's signals
	if err := d.cmd.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("start the watchdog: %w", err)
	}
	return d, nil
}

// pid returns that of the watchdog's process and its group; 0 is none.
func (d *dog) pid() int {
	if d == nil {
		return 0
	}
	return d.cmd.Process.Pid
}

// guard has the watchdog kill group at until. The error says that there is no watchdog any more.
func (d *dog) guard(group int, until time.Duration) error {
	if moved := until - d.last; moved > -time.Millisecond && moved < time.Millisecond {
		return nil
	}
	d.last = until
	_, err := fmt.Fprintf(d.pipe, "%d %d\n", group, until)
	return err
}

// idle tells the watchdog that the group is gone.
func (d *dog) idle() error { return d.guard(0, 0) }

// close ends the watchdog.
func (d *dog) close() {
	d.pipe.Close()
	d.cmd.Wait()
}

// watchdog is the main function of the watchdog's process.
func watchdog() {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
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
		if now.group != 0 {
			late = time.After(max(again, min(look, now.until-clock())))
		}
		select {
		case next, open := <-lines:
			if !open {
				if now.group != 0 {
					end(now.group)
				}
				return
			}
			now = next
		case <-late:
			if clock() >= now.until && end(now.group) {
				now = line{}
			}
		}
	}
}

// end kills a process group and tells whether it is gone, perhaps but for being collected.
func end(group int) bool {
	err := syscall.Kill(-group, syscall.SIGKILL)
	return err == nil || errors.Is(err, syscall.ESRCH)
}
