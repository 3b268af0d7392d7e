//go:build !linux

package controlplane

// awaitStopped does nothing: SIGSTOP works soon.
func (p *process) awaitStopped() error { return nil }
