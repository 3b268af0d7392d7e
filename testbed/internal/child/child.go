// Package child starts processes that end with this one, however it ends.
package child

import (
	"os/exec"
	"runtime"
	"syscall"
)

// Start starts cmd, out of reach of a terminal's interrupt, and calls wait once it runs: on a goroutine of its own,
// which is to read what cmd says and to call cmd.Wait. On Linux cmd gets the signal when this process dies. Everywhere
// its standard input ends then, to which nothing is written unless the caller has set it.
func Start(cmd *exec.Cmd, signal syscall.Signal, wait func()) error {
	cmd.SysProcAttr = attr(signal)
	if cmd.Stdin == nil {
		if _, err := cmd.StdinPipe(); err != nil {
			return err
		}
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // a parent death signal comes when the starting thread ends, so it stays
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			wait()
		}
	}()
	return <-started
}
