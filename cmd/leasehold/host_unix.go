//go:build unix

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"
)

// A host is what the processes of run live in: it hears signals, and collects what has ended.
type host struct {
	log      *slog.Logger
	signals  chan os.Signal // that the tool was sent
	children chan os.Signal // has room for one: a child has ended or stopped
	dog      *dog
}

// What asks the tool to stop, and what is only passed on. SIGHUP asks it to stop while there is no command.
var (
	stopSignals = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT}
	passSignals = []os.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH}
)

func newHost(log *slog.Logger) (*host, error) {
	h := &host{log: log, signals: make(chan os.Signal, 16), children: make(chan os.Signal, 1)}
	signal.Notify(h.signals, slices.Concat(stopSignals, passSignals)...)
	signal.Notify(h.children, syscall.SIGCHLD)
	var err error
	if err = adopt(); err == nil {
		h.dog, err = startDog()
	}
	if err != nil {
		h.close()
	}
	return h, err
}

func (h *host) close() {
	signal.Stop(h.signals)
	signal.Stop(h.children)
	if h.dog != nil {
		h.dog.close()
	}
}

func stops(sig os.Signal) bool { return slices.Contains(stopSignals, sig) }

// attend cancels a wait when the tool is asked to stop, or after wait if that is not 0. A second request to stop ends the
// process. It lasts until the function that it returns is called.
func (h *host) attend(cancel context.CancelCauseFunc, wait time.Duration) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		var late <-chan time.Time
		if wait > 0 {
			timer := time.NewTimer(wait)
			defer timer.Stop()
			late = timer.C
		}
		for asked := false; ; {
			select {
			case sig := <-h.signals:
				if !stops(sig) && sig != syscall.SIGHUP {
					continue
				}
				if asked {
					os.Exit(exitSignal + int(sig.(syscall.Signal)))
				}
				asked = true
				cancel(stopped{sig})
			case <-late:
				cancel(errNotInTime)
			case <-h.children:
				reapStrays(h.dog.pid())
			case <-quit:
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(quit)
		<-done
	})
}

// sleep waits for d, or returns why not.
func (h *host) sleep(d time.Duration) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	defer h.attend(cancel, 0)()
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A group is a command, the processes it started that stayed in its process group, and the strays: those that left the
// group and whose parents have ended.
type group struct {
	id         int // of the process group, and of the command itself
	host       *host
	foreground bool                // it has the terminal
	status     *syscall.WaitStatus // of the command; nil while it runs
}

// start starts the command. It must be called on the thread of main, with which the command dies.
func (h *host) start(path string, argv, env []string) (*group, error) {
	g := &group{host: h, foreground: hasTerminal()}
	var err error
	g.id, err = syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}, Sys: sysProcAttr(g.foreground)})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return g, nil
}

// signal sends sig to the group. It fails where the group is gone already.
func (g *group) signal(sig syscall.Signal) { syscall.Kill(-g.id, sig) }

// signalAll sends sig to the group and to all strays.
func (g *group) signalAll(sig syscall.Signal) {
	g.signal(sig)
	for _, pid := range strays(g.host.dog.pid(), g.id) {
		syscall.Kill(pid, sig)
	}
}

// reap collects what has ended, and tells whether nothing is left. Once it is, the group must not be signalled any more.
func (g *group) reap() bool {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-g.id, &status, syscall.WNOHANG|syscall.WUNTRACED, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			break
		}
		switch {
		case status.Stopped():
			// Nobody but us sees that Ctrl-Z stopped a command that has the terminal, and a shell does not get it back.
			if g.foreground && status.StopSignal() == syscall.SIGTSTP {
				syscall.Kill(-g.id, syscall.SIGCONT)
			}
		case pid == g.id:
			g.status = &status
		}
	}
	if g.status == nil {
		return false
	}
	left := reapStrays(g.host.dog.pid(), g.id)
	return left == 0 && syscall.Kill(-g.id, 0) == syscall.ESRCH
}

// code returns the exit code of the command, as a shell would.
func (g *group) code() int {
	if g.status.Signaled() {
		return exitSignal + int(g.status.Signal())
	}
	return g.status.ExitStatus()
}
