package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
)

// newElection is the first scene.
func newElection() *timeline {
	return &timeline{
		command: candidateCommand,
		play:    func(ctx context.Context, s *scene) error { return election{s}.play(ctx) },
		title:   "three processes, one Lease, one leader at a time",
		horizon: 34 * time.Second,
		rows:    []*row{{name: "amber", style: amber}, {name: "teal", style: teal}, {name: "violet", style: violet}},
		columns: [...]string{"EVENT", "WHO TOOK OVER", "AFTER", "FENCING TOKEN", ""},
		steps: []*step{
			{key: "a", event: "SIGTERM to the leader"},
			{key: "b", event: "SIGKILL to the leader"},
			{key: "c", event: "SIGSTOP to the leader"},
			{key: "d", event: fmt.Sprintf("API server away for %v", outage)},
			{key: "e", event: "Lease deleted"},
		},
		checks: []*step{{event: "no two sessions overlapped"}},
	}
}

const (
	nap    = 1 * time.Second   // of a frozen leader after it was succeeded
	outage = renewDeadline / 2 // of the API server
)

// An election is the scene in which candidates compete for one Lease.
type election struct{ *scene }

func (s election) play(ctx context.Context) error {
	s.tell("three candidates start: the first to write the Lease leads")
	for _, r := range s.rows {
		if err := s.startProcess(r); err != nil {
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
	s.tell("the candidates stop")
	var last *row // so that none has to take over
	if leader := s.leader(); leader != nil {
		last = leader.row
	}
	if err := s.stop(last); err != nil {
		return err
	}
	return s.run(ctx, s.checks[0], s.check)
}

// terminate asks the leader to stop, which releases the lease first.
func (s election) terminate(ctx context.Context, st *step) error {
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
func (s election) kill(ctx context.Context, st *step) error {
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
func (s election) freeze(ctx context.Context, st *step) error {
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
func (s election) silence(ctx context.Context, st *step) error {
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
func (s election) remove(ctx context.Context, st *step) error {
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

// check checks by the journal that all leaders wrote that no two wrote at the same time.
func (s election) check(_ context.Context, st *step) (err error) {
	st.remark, err = s.place.checkJournal()
	s.note = "done: no two processes worked at the same time"
	return err
}

// heir waits until another candidate than old leads, because of the event at the given time.
func (s election) heir(ctx context.Context, st *step, old *session, at time.Duration) (*session, error) {
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
func (s election) heirOfSilent(ctx context.Context, st *step, old *session, at time.Duration) (time.Duration, error) {
	renewed, err := s.renewed(ctx, leaseName)
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

// settled returns the leader once it has been the same for a while.
func (s election) settled(ctx context.Context) (*session, error) {
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
