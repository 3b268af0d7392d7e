//go:build !linux

package controlplane

// awaitStopped does nothing: SIGSTOP takes effect soon.
func (p *process) awaitStopped() error { return nil }
