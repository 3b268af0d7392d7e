package controlplane

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// sysProcAttr keeps a terminal's interrupt from the child, which ends after its parent. A paused one is woken by the
// parent's death, to see the end of its standard input.
func sysProcAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGCONT}
}

// awaitStopped returns when every thread of the process, to which SIGSTOP was sent, has stopped.
func (p *process) awaitStopped() error {
	for {
		err := unix.Waitid(unix.P_PID, p.pid(), nil, unix.WSTOPPED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
