package controlplane

import (
	"errors"

	"golang.org/x/sys/unix"
)

// awaitStopped returns when every thread of the process, to which SIGSTOP was sent, has stopped.
func (p *process) awaitStopped() error {
	for {
		err := unix.Waitid(unix.P_PID, p.pid(), nil, unix.WSTOPPED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
