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
	vacancy   = 1500 * time.Millisecond // before a candidate that ended is replaced
	nap       = 1 * time.Second         // of a frozen leader after it was succeeded
	outage    = renewDeadline / 2       // of the API server
	patience  = 4 * leaseDuration       // for events that take one duration at most; the machine may be busy
	stopLimit = 15 * time.Second        // for the candidates to end
	slack     = time.Second / 20        // between the wall clock and CLOCK_BOOTTIME
)

// A show is the whole course of events. What it does and what it draws happen on one goroutine: it draws while it
// waits.
type show struct {
	*timeline
	screen *screen
	server *controlplane.Server
	leases coordinationv1client.LeaseInterface
	place  place
}

// play runs the show and returns the first error.
func (s *show) play(ctx context.Context) (err error) {
	if err := s.prepare(); err != nil {
		return err
	}
	defer func() { s.now = boottime.Now() }()
	defer func() { err = errors.Join(err, s.stopCandidates()) }()
	s.tell("three candidates start: the first to write the Lease leads")
	for _, r := range s.rows {
		if err := s.startCandidate(r); err != nil {
			return err
		}
	}
	if err := s.await(ctx, "a candidate leads", func() bool { return s.leader() != nil }); err != nil {
		return err
	}
	s.tell("%s leads, with fencing token %d", s.leader().row.name, s.leader().token)
	for i, do := range []func(context.Context, *step) error{s.terminate, s.kill, s.freeze, s.silence, s.remove} {
		if err := s.run(ctx, s.steps[i], do); err != nil {
			return err
		}
	}
	if err := s.pause(ctx, calm); err != nil {
		return err
	}
	s.tell("the candidates stop, then the control plane")
	if err := s.stopCandidates(); err != nil {
		return err
	}
	return s.run(ctx, &s.verdict, s.check)
}

// prepare opens what the candidates share, in the control plane's own directory: it is removed with it, even if the
// demo is killed.
func (s *show) prepare() error {
	config := s.server.Config()
	config.Timeout = patience
	client, err := coordinationv1client.NewForConfig(config)
	if err != nil {
		return err
	}
	s.leases = client.Leases("default")
	dir := filepath.Dir(s.server.Log())
	s.place = place{
		kubeconfig: s.server.Kubeconfig(),
		journal:    filepath.Join(dir, "journal"),
		log:        filepath.Join(dir, "candidates.log"),
		news:       make(chan news),
	}
	return os.WriteFile(s.place.journal, nil, 0o600)
}

// run runs a step and enters its outcome into the table.
func (s *show) run(ctx context.Context, st *step, do func(context.Context, *step) error) error {
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

// terminate asks the leader to stop, which releases the lease first.
func (s *show) terminate(ctx context.Context, st *step) error {
	old, err := s.settled(ctx)
	if err != nil {
		return err
	}
	s.tell("%s gets SIGTERM: it releases the lease, and another takes it at once", old.row.name)
	at := s.mark("a", "SIGTERM")
	if err := old.row.process.signal(syscall.SIGTERM); err != nil {
		return err
	}
	heir, err := s.heir(ctx, st, old, at)
	if err != nil {
		return err
	}
	if heir.row == old.row {
		return fmt.Errorf("%s leads again after SIGTERM", heir.row.name)
	}
	st.remark = "released when work was done"
	return s.replace(ctx, old.row)
}

// kill kills the leader: its lease is not released, so it has to expire.
func (s *show) kill(ctx context.Context, st *step) error {
	old, err := s.settled(ctx)
	if err != nil {
		return err
	}
	s.tell("%s is killed: its lease expires %v after its last renewal", old.row.name, leaseDuration)
	at := s.mark("b", "SIGKILL")
	if err := old.row.process.signal(syscall.SIGKILL); err != nil {
		return err
	}
	old.row.killed = append(old.row.killed, at)
	old.row.outlived = append(old.row.outlived, stretch{at, still})
	after, err := s.heirOfSilent(ctx, st, old, at)
	if err != nil {
		return err
	}
	old.row.outlived[len(old.row.outlived)-1].end(s.newest().worked.from)
	st.remark = fmt.Sprintf("%s after its last renewal", short(after))
	return s.replace(ctx, old.row)
}

// freeze stops the leader's process until another leads, and resumes it: it must notice its loss at once.
func (s *show) freeze(ctx context.Context, st *step) error {
	old, err := s.settled(ctx)
	if err != nil {
		return err
	}
	s.tell("%s is frozen: it cannot see that its lease expires", old.row.name)
	at := s.mark("c", "SIGSTOP")
	if err := old.row.process.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	old.row.frozen = append(old.row.frozen, stretch{at, still})
	if _, err := s.heirOfSilent(ctx, st, old, at); err != nil {
		return err
	}
	if err := s.pause(ctx, nap); err != nil {
		return err
	}
	s.tell("%s is resumed: by its clock it knows at once that it does not lead any more", old.row.name)
	woken := s.mark("c", "resumed")
	old.row.frozen[len(old.row.frozen)-1].end(woken)
	if err := old.row.process.signal(syscall.SIGCONT); err != nil {
		return err
	}
	if err := s.await(ctx, "the frozen leader notices its loss", func() bool { return old.ended != 0 }); err != nil {
		return err
	}
	if old.worked.to > woken {
		return fmt.Errorf("%s worked for %v after it was resumed", old.row.name, old.worked.to-woken)
	}
	if !old.lost {
		return fmt.Errorf("%s did not lose the lease, its session ended by itself: %s", old.row.name, old.why)
	}
	st.remark = fmt.Sprintf("resumed, noticed in %s", short(old.ended-woken))
	return nil
}

// silence stops the API server for a time that a leader must survive.
func (s *show) silence(ctx context.Context, st *step) error {
	leader, err := s.settled(ctx)
	if err != nil {
		return err
	}
	s.tell("the API server does not answer for %v: %s trusts its lease for %v", outage, leader.row.name, renewDeadline)
	at := s.mark("d", "API away")
	if err := s.server.Pause(); err != nil {
		return err
	}
	s.away = append(s.away, stretch{at, still})
	err = s.pause(ctx, outage)
	err = errors.Join(err, s.server.Resume())
	s.away[len(s.away)-1].end(boottime.Now())
	if err != nil {
		return err
	}
	s.tell("the API server is back: %s renews its lease", leader.row.name)
	// Without a renewal since, the lease could not be trusted for that long.
	if err := s.pause(ctx, at+renewDeadline+calm/4-boottime.Now()); err != nil {
		return err
	}
	if now := s.leader(); now != leader {
		return fmt.Errorf("%s lost the lease: %s", leader.row.name, leader.why)
	}
	st.who, st.after, st.tokens = leader.row.name+" leads on", "–", fmt.Sprint(leader.token)
	st.remark = "no lease was lost"
	return nil
}

// remove deletes the Lease. Its holder sees the deletion first, stops, and may then lead again.
func (s *show) remove(ctx context.Context, st *step) error {
	old, err := s.settled(ctx)
	if err != nil {
		return err
	}
	s.tell("the Lease is deleted: %s stops its work, and only then creates another", old.row.name)
	at := s.mark("e", "deleted")
	if err := s.leases.Delete(ctx, leaseName, metav1.DeleteOptions{}); err != nil {
		return err
	}
	heir, err := s.heir(ctx, st, old, at)
	if err != nil {
		return err
	}
	if err := s.await(ctx, "the holder notices that the Lease was deleted",
		func() bool { return old.ended != 0 }); err != nil {
		return err
	}
	if !old.lost {
		return fmt.Errorf("%s did not lose the lease: %s", old.row.name, old.why)
	}
	if heir.row == old.row {
		st.who = heir.row.name + " itself"
	}
	st.remark = fmt.Sprintf("work stopped in %s", short(old.ended-at))
	return nil
}

// check reads the journal that all leaders wrote, and checks that no two wrote at the same time.
func (s *show) check(_ context.Context, st *step) error {
	f, err := os.Open(s.place.journal)
	if err != nil {
		return err
	}
	defer f.Close()
	records, err := readJournal(f)
	if err != nil {
		return err
	}
	sessions := spans(records)
	closest, err := exclusive(sessions)
	if err != nil {
		return err
	}
	st.remark = fmt.Sprintf("%d sessions, %s apart or more, in %d records of work", len(sessions), short(closest),
		len(records))
	s.note = "done: no two processes worked at the same time"
	return nil
}

// heir waits until another candidate than old leads, because of the event at the given time.
func (s *show) heir(ctx context.Context, st *step, old *session, at time.Duration) (*session, error) {
	var heir *session
	err := s.await(ctx, "another candidate takes over", func() bool {
		heir = s.newest()
		return heir != old
	})
	if err != nil {
		return nil, err
	}
	if heir.token < old.token {
		return nil, fmt.Errorf("%s has fencing token %d after %d", heir.row.name, heir.token, old.token)
	}
	after := heir.worked.from - at
	st.who, st.after = old.row.name+" → "+heir.row.name, short(after)
	st.tokens = fmt.Sprintf("%d → %d", old.token, heir.token)
	s.screen.say("%s  %s leads after %s, fencing token %d", s.clock(), heir.row.name, st.after, heir.token)
	return heir, nil
}

// heirOfSilent waits as heir does, for a lease that was not released, and returns how long after its last renewal it
// was taken: not before its duration was over.
func (s *show) heirOfSilent(ctx context.Context, st *step, old *session, at time.Duration) (time.Duration, error) {
	renewed, err := s.renewed(ctx)
	if err != nil {
		return 0, err
	}
	heir, err := s.heir(ctx, st, old, at)
	if err != nil {
		return 0, err
	}
	if heir.row == old.row {
		return 0, fmt.Errorf("%s leads again", heir.row.name)
	}
	after := heir.worked.from - renewed
	if after < leaseDuration-slack {
		return 0, fmt.Errorf("%s took a lease that was renewed %v before, and lasts %v", heir.row.name, after,
			leaseDuration)
	}
	return after, nil
}

// renewed returns when the Lease was renewed last. The holder wrote it by the wall clock, which is the same here.
func (s *show) renewed(ctx context.Context) (time.Duration, error) {
	lease, err := s.leases.Get(ctx, leaseName, metav1.GetOptions{})
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

// settled returns the leader once it has been the same for a while.
func (s *show) settled(ctx context.Context) (*session, error) {
	if err := s.await(ctx, "a candidate leads", func() bool { return s.leader() != nil }); err != nil {
		return nil, err
	}
	leader := s.leader()
	s.note = fmt.Sprintf("%s leads, with fencing token %d", leader.row.name, leader.token)
	if err := s.pause(ctx, calm); err != nil {
		return nil, err
	}
	if now := s.leader(); now != leader {
		return nil, fmt.Errorf("%s lost the lease, and nothing had happened: %s", leader.row.name, leader.why)
	}
	return leader, nil
}

// replace starts a new candidate in place of one that is ending.
func (s *show) replace(ctx context.Context, r *row) error {
	if err := s.await(ctx, r.name+" ends", func() bool { return r.process.gone }); err != nil {
		return err
	}
	if err := s.pause(ctx, vacancy); err != nil {
		return err
	}
	return s.startCandidate(r)
}

func (s *show) startCandidate(r *row) error {
	p, err := s.place.start(r.name)
	if err != nil {
		return err
	}
	r.begin(p, boottime.Now())
	s.screen.say("%s  %s started, process %d", s.clock(), r.name, p.pid())
	return nil
}

// stopCandidates stops the running candidates, the leader last, so that none has to take over. It kills those that do
// not stop.
func (s *show) stopCandidates() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), stopLimit,
		fmt.Errorf("candidates still running after %v, killed", stopLimit))
	defer cancel()
	leader := s.leader()
	running := func(leads bool) (rows []*row) {
		for _, r := range s.rows {
			if r.process != nil && !r.process.gone && (leader != nil && leader.row == r) == leads {
				rows = append(rows, r)
			}
		}
		return rows
	}
	var errs []error
	for _, leads := range []bool{false, true} {
		for _, r := range running(leads) {
			errs = append(errs, r.process.signal(syscall.SIGTERM), r.process.signal(syscall.SIGCONT))
		}
		for len(running(leads)) > 0 {
			errs = append(errs, s.pump(ctx, func() bool { return len(running(leads)) == 0 }))
			if ctx.Err() == nil {
				continue
			}
			ctx = context.Background()
			for _, r := range running(leads) {
				errs = append(errs, r.process.signal(syscall.SIGKILL))
			}
		}
	}
	return errors.Join(errs...)
}

// await waits until the condition holds, which it should soon.
func (s *show) await(ctx context.Context, what string, so func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("waited %v until %s", patience, what))
	defer cancel()
	return s.pump(ctx, so)
}

// pause draws for a time.
func (s *show) pause(ctx context.Context, d time.Duration) error {
	over := boottime.Now() + d
	return s.pump(ctx, func() bool { return boottime.Now() >= over })
}

// pump records what the candidates do, and draws it, until the condition holds or ctx ends.
func (s *show) pump(ctx context.Context, so func() bool) error {
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
func (s *show) mark(key, label string) time.Duration {
	at := boottime.Now()
	s.marks = append(s.marks, mark{at, key, label})
	return at
}

// tell shows what is happening.
func (s *show) tell(format string, args ...any) {
	s.note = fmt.Sprintf(format, args...)
	s.now = boottime.Now()
	s.screen.show(s.timeline)
	s.screen.say("%s  %s", s.clock(), s.note)
}

// clock is the time since the start.
func (s *show) clock() string { return fmt.Sprintf("%5.1f s", (boottime.Now() - s.start).Seconds()) }
