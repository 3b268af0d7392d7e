//go:build !linux

package controlplane

import "syscall"

// sysProcAttr keeps a terminal's interrupt from the child, which ends after its parent.
func sysProcAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// awaitStopped does nothing: SIGSTOP works soon.
func (p *process) awaitStopped() error { return nil }
