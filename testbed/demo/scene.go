package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/leasehold-go/leasehold/testbed/controlplane"
	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
)

const (
	frameTime = 100 * time.Millisecond
	calm      = 2500 * time.Millisecond // between the events, for the viewer
	vacancy   = 1500 * time.Millisecond // before a process that ended is replaced
	patience  = 4 * leaseDuration       // for events that take one duration at most; the machine may be busy
	stopLimit = 15 * time.Second        // for the processes to end
	slack     = time.Second / 20        // between the wall clock and CLOCK_BOOTTIME
)

// A scene is a course of events. What it does and what it draws happen on one goroutine: it draws while it waits.
type scene struct {
	*timeline
	screen *screen
	server *controlplane.Server
	leases coordinationv1client.LeaseInterface
	place  place
}

// newScene opens what the processes share, in the control plane's own directory: it is removed with it, even if the
// demo is killed.
func newScene(t *timeline, screen *screen, server *controlplane.Server) (*scene, error) {
	config := server.Config()
	config.Timeout = patience
	client, err := coordinationv1client.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(server.Log())
	p := place{
		command:    t.command,
		kubeconfig: server.Kubeconfig(),
		journal:    filepath.Join(dir, t.command+".journal"),
		log:        filepath.Join(dir, "processes.log"),
		news:       make(chan news),
	}
	t.start = boottime.Now()
	return &scene{t, screen, server, client.Leases("default"), p}, os.WriteFile(p.journal, nil, 0o600)
}

// perform plays the scene, and stops its processes.
func (s *scene) perform(ctx context.Context) (err error) {
	defer func() { s.now = boottime.Now() }()
	defer func() { err = errors.Join(err, s.stop(nil)) }()
	return s.play(ctx, s)
}

// run runs a step and enters its outcome into the table.
func (s *scene) run(ctx context.Context, st *step, do func(context.Context, *step) error) error {
	st.state = running
	if err := do(ctx, st); ctx.Err() != nil {
		return context.Cause(ctx)
	} else if err != nil {
		st.state, st.remark = failed, "see below"
		return fmt.Errorf("%s: %w", st.event, err)
	}
	st.state = passed
	return nil
}

// replace starts a new process in place of one that is ending.
func (s *scene) replace(ctx context.Context, r *row) error {
	if err := s.await(ctx, r.name+" ends", func() bool { return r.process.gone }); err != nil {
		return err
	}
	if err := s.pause(ctx, vacancy); err != nil {
		return err
	}
	return s.startProcess(r)
}

func (s *scene) startProcess(r *row) error {
	p, err := s.place.start(r.name)
	if err != nil {
		return err
	}
	r.begin(p, boottime.Now())
	s.screen.say("%s  %s started, process %d", s.clock(), r.name, p.pid())
	return nil
}

// stop stops the running processes, that of one row after the others. It kills those that do not stop.
func (s *scene) stop(last *row) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), stopLimit,
		fmt.Errorf("processes still running after %v, killed", stopLimit))
	defer cancel()
	running := func(isLast bool) (rows []*row) {
		for _, r := range s.rows {
			if r.process != nil && !r.process.gone && (r == last) == isLast {
				rows = append(rows, r)
			}
		}
		return rows
	}
	var errs []error
	for _, isLast := range []bool{false, true} {
		for _, r := range running(isLast) {
			errs = append(errs, r.process.signal(syscall.SIGTERM), r.process.signal(syscall.SIGCONT))
		}
		for len(running(isLast)) > 0 {
			errs = append(errs, s.pump(ctx, func() bool { return len(running(isLast)) == 0 }))
			if ctx.Err() == nil {
				continue
			}
			ctx = context.Background()
			for _, r := range running(isLast) {
				errs = append(errs, r.process.signal(syscall.SIGKILL))
			}
		}
	}
	return errors.Join(errs...)
}

// renewed returns when a Lease was renewed last. The holder wrote it by the wall clock, which is the same here.
func (s *scene) renewed(ctx context.Context, name string) (time.Duration, error) {
	lease, err := s.leases.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return 0, err
	}
	return boottime.Now() - time.Since(renewTime(lease).Round(0)), nil
}

func renewTime(l *coordinationv1.Lease) time.Time {
	if l.Spec.RenewTime == nil {
		return time.Time{}
	}
	return l.Spec.RenewTime.Time
}

// await waits until the condition holds, which it should soon.
func (s *scene) await(ctx context.Context, what string, so func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("waited %v until %s", patience, what))
	defer cancel()
	return s.pump(ctx, so)
}

// pause draws for a time.
func (s *scene) pause(ctx context.Context, d time.Duration) error {
	over := boottime.Now() + d
	return s.pump(ctx, func() bool { return boottime.Now() >= over })
}

// pump records what the processes do, and draws it, until the condition holds or ctx ends.
func (s *scene) pump(ctx context.Context, so func() bool) error {
	ticker := time.NewTicker(frameTime)
	defer ticker.Stop()
	for !so() {
		select {
		case n := <-s.place.news:
			if err := s.see(n); err != nil {
				return err
			}
		case <-ticker.C:
			s.now = boottime.Now()
			s.screen.show(s.timeline)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// mark records an event that is about to happen, and returns the time.
func (s *scene) mark(key, label string) time.Duration {
	at := boottime.Now()
	s.marks = append(s.marks, mark{at, key, label})
	return at
}

// tell shows what is happening.
func (s *scene) tell(format string, args ...any) {
	s.note = fmt.Sprintf(format, args...)
	s.now = boottime.Now()
	s.screen.show(s.timeline)
	s.screen.say("%s  %s", s.clock(), s.note)
}

// clock is the time since the start.
func (s *scene) clock() string { return fmt.Sprintf("%5.1f s", (boottime.Now() - s.start).Seconds()) }
