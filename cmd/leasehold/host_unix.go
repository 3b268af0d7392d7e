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

// A host receives the signals of run, and collects the processes that have ended.
type host struct {
	log      *slog.Logger
	signals  chan os.Signal // sent to the tool
	children chan os.Signal // has room for one: a child has ended or stopped
	pipe     chan os.Signal // never read: a log that nobody reads any more must not end the tool
	watchdog *watchdog
}

// A process is an entry of the process table.
type process struct {
	pid, parent, group int
	name               string
	ended              bool // but not collected yet
}

func (p process) String() string { return fmt.Sprintf("%d (%s)", p.pid, p.name) }

// Signals that ask the tool to stop, and those that are only passed on. SIGHUP asks it to stop while there is no
// command.
var (
	stopSignals = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT}
	passSignals = []os.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH}
)

// newHost returns a host. Its watchdog keeps the given files open.
func newHost(log *slog.Logger, kept ...*os.File) (*host, error) {
	h := &host{
		log:      log,
		signals:  make(chan os.Signal, 16),
		children: make(chan os.Signal, 1),
		pipe:     make(chan os.Signal, 1),
	}
	signal.Notify(h.signals, slices.Concat(stopSignals, passSignals)...)
	signal.Notify(h.children, syscall.SIGCHLD)
	signal.Notify(h.pipe, syscall.SIGPIPE)
	var err error
	if err = adopt(); err == nil {
		h.watchdog, err = startWatchdog(kept...)
	}
	if err != nil {
		h.close()
	}
	return h, err
}

func (h *host) close() {
	signal.Stop(h.signals)
	signal.Stop(h.children)
	signal.Stop(h.pipe)
	if h.watchdog != nil {
		h.watchdog.close()
	}
}

func stops(sig os.Signal) bool { return slices.Contains(stopSignals, sig) }

// attend cancels a wait when the tool is asked to stop, until the function that it returns is called. A second request
// to stop ends the process.
func (h *host) attend(cancel context.CancelCauseFunc) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
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
			case <-h.children:
				reapOrphans(h.watchdog.pid())
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

// sleep returns after d, or when the tool is asked to stop, with the error that says so.
func (h *host) sleep(d time.Duration) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	defer h.attend(cancel)()
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A group is a command and all that it started: the processes in its process group, and on Linux those that left it.
type group struct {
	id         int // of the process group, and of the command itself
	host       *host
	foreground bool                // it has the terminal
	status     *syscall.WaitStatus // of the command; nil while it runs
}

// start starts the command. It must be called on the main thread: the kernel kills the command when its thread ends.
func (h *host) start(path string, argv, env []string) (*group, error) {
	g := &group{host: h, foreground: hasTerminal()}
	var err error
	g.id, err = syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2},
		Sys: sysProcAttr(g.foreground)})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return g, nil
}

// signal sends sig to the process group. It does nothing if the group is gone.
func (g *group) signal(sig syscall.Signal) { syscall.Kill(-g.id, sig) }

// signalAll sends sig to the process group, and to the processes that left it.
func (g *group) signalAll(sig syscall.Signal) {
	g.signal(sig)
	for _, p := range started(g.id, g.host.watchdog.pid()) {
		if p.group != g.id {
			syscall.Kill(p.pid, sig)
		}
	}
}

// left names the processes of the group that have not ended.
func (g *group) left() []string {
	var names []string
	for _, p := range started(g.id, g.host.watchdog.pid()) {
		names = append(names, p.String())
	}
	return names
}

// reap collects processes that have ended, and reports whether none is left. Then the group must not be signalled any
// more.
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
			// Ctrl-Z stops only the command, which has the terminal: our shell does not see it, and could not continue
			// it.
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
	left := reapOrphans(g.host.watchdog.pid(), g.id)
	return left == 0 && syscall.Kill(-g.id, 0) == syscall.ESRCH
}

// code returns the exit code of the command, as a shell would.
func (g *group) code() int {
	if g.status.Signaled() {
		return exitSignal + int(g.status.Signal())
	}
	return g.status.ExitStatus()
}
