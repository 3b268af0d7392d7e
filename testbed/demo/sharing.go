package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
)

// newSharing is the second scene.
func newSharing() *timeline {
	return &timeline{
		command: memberCommand,
		play:    func(ctx context.Context, s *scene) error { return sharing{s}.play(ctx) },
		title:   "four processes, sixteen keys, one owner of each at a time",
		horizon: 20 * time.Second,
		rows: []*row{
			{name: "amber", style: amber}, {name: "teal", style: teal}, {name: "violet", style: violet},
			{name: "pink", style: pink}, {name: "lime", style: lime}, {name: "blue", style: blue},
		},
		keys:    slices.Clone(feeds),
		columns: [...]string{"EVENT", "KEYS THAT MOVED", "AFTER", "LONGEST GAP", ""},
		steps: []*step{
			{key: "f", event: "SIGKILL to a member"},
			{key: "g", event: "another member joins"},
			{key: "h", event: "a member is replaced"},
		},
		checks: []*step{{event: "every key has an owner"}, {event: "no key had two"}},
	}
}

// A sharing is the scene in which members share out keys. Four of its rows begin, the others come later.
type sharing struct{ *scene }

func (s sharing) play(ctx context.Context) error {
	first, joins, heir := s.rows[:4], s.rows[4], s.rows[5]
	s.tell("four members start: they share out sixteen keys")
	for _, r := range first {
		if err := s.startProcess(r); err != nil {
			return err
		}
	}
	if err := s.await(ctx, "the keys are shared out", func() bool { return s.balanced() }); err != nil {
		return err
	}
	slices.SortStableFunc(s.keys, func(a, b string) int {
		return cmp.Compare(slices.Index(s.rows, s.owner(a)), slices.Index(s.rows, s.owner(b)))
	})
	shared := boottime.Now()
	for i, do := range []func(context.Context, *step) error{
		func(ctx context.Context, st *step) error { return s.kill(ctx, st, first[3]) },
		func(ctx context.Context, st *step) error { return s.join(ctx, st, joins) },
		func(ctx context.Context, st *step) error { return s.roll(ctx, st, first[0], heir) },
	} {
		if err := s.settled(ctx); err != nil {
			return err
		}
		if err := s.run(ctx, s.steps[i], do); err != nil {
			return err
		}
	}
	if err := s.settled(ctx); err != nil {
		return err
	}
	if err := s.run(ctx, s.checks[0], func(_ context.Context, st *step) error {
		st.remark = s.summary(shared)
		return nil // settled has found an owner of each
	}); err != nil {
		return err
	}
	s.tell("the members stop")
	if err := s.stop(nil); err != nil {
		return err
	}
	return s.run(ctx, s.checks[1], func(_ context.Context, st *step) (err error) {
		st.remark, err = s.place.checkJournal()
		s.note = "done: no two processes worked on a key at the same time"
		return err
	})
}

// kill kills a member: its keys are given to the others when its lease has expired.
func (s sharing) kill(ctx context.Context, st *step, r *row) error {
	owned := s.owned()[r]
	s.tell("%s is killed: its lease expires %v after its last renewal, then others get its keys", r.name, leaseDuration)
	lease, err := s.leaseOf(ctx, r)
	if err != nil {
		return err
	}
	at := s.mark("f", "SIGKILL to "+r.name)
	if err := r.process.signal(syscall.SIGKILL); err != nil {
		return err
	}
	r.killed = append(r.killed, at)
	renewed, err := s.renewed(ctx, lease)
	if err != nil {
		return err
	}
	if err := s.await(ctx, "other members own its keys", s.balanced); err != nil {
		return err
	}
	moves, err := s.moved(st, at, "from "+r.name, owned)
	if err != nil {
		return err
	}
	first := slices.MinFunc(moves, func(a, b move) int { return cmp.Compare(a.to.worked.from, b.to.worked.from) })
	after := first.to.worked.from - renewed
	if after < leaseDuration-slack {
		return fmt.Errorf("%s got a key of a member that had renewed its lease %v before, which lasts %v",
			first.to.row.name, after, leaseDuration)
	}
	st.remark = fmt.Sprintf("%s after its last renewal", short(after))
	return nil
}

// join starts another member: it gets as many keys as balance needs, and no other key moves.
func (s sharing) join(ctx context.Context, st *step, r *row) error {
	s.tell("%s joins: only the surplus of the others moves to it, %v later", r.name, settle)
	at := s.mark("g", r.name+" joins")
	if err := s.startProcess(r); err != nil {
		return err
	}
	if err := s.await(ctx, "the keys are shared out", s.balanced); err != nil {
		return err
	}
	_, err := s.moved(st, at, "to "+r.name, s.owned()[r])
	st.remark = "after the work had returned"
	return err
}

// roll starts another member and stops an old one, as a rollout does: its keys go to the new one, and no other moves.
func (s sharing) roll(ctx context.Context, st *step, old, heir *row) error {
	s.tell("%s starts, then %s gets SIGTERM: a rollout replaces one pod after another", heir.name, old.name)
	if err := s.startProcess(heir); err != nil {
		return err
	}
	if err := s.joined(ctx, heir); err != nil {
		return err
	}
	at := s.mark("h", fmt.Sprintf("%s for %s", heir.name, old.name))
	if err := old.process.signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := s.await(ctx, "the keys are shared out", s.balanced); err != nil {
		return err
	}
	moves, err := s.moved(st, at, old.name+" → "+heir.name, 0)
	if err != nil {
		return err
	}
	if len(moves) == s.owned()[heir] {
		st.remark = "each once, to the new member"
	}
	return nil
}

// A move is that of a key from one session to the next.
type move struct{ from, to *session }

// gap is how long nobody worked on the key.
func (m move) gap() time.Duration { return m.to.worked.from - m.from.worked.to }

// moves returns the moves since a time.
func (s sharing) moves(since time.Duration) (moves []move) {
	for _, key := range s.keys {
		all := s.sessions(key)
		for i := 1; i < len(all); i++ {
			if all[i].worked.from > since {
				moves = append(moves, move{all[i-1], all[i]})
			}
		}
	}
	return moves
}

// moved enters the moves since an event into the table. The error says that there were not as many as were wanted,
// unless that is 0.
func (s sharing) moved(st *step, at time.Duration, how string, want int) ([]move, error) {
	moves := s.moves(at)
	if len(moves) == 0 || want > 0 && len(moves) != want {
		return nil, fmt.Errorf("%d keys moved, want %d", len(moves), want)
	}
	last := slices.MaxFunc(moves, func(a, b move) int { return cmp.Compare(a.to.worked.from, b.to.worked.from) })
	longest := slices.MaxFunc(moves, func(a, b move) int { return cmp.Compare(a.gap(), b.gap()) })
	st.who = fmt.Sprintf("%d, %s", len(moves), how)
	st.after, st.tokens = short(last.to.worked.from-at), short(longest.gap())
	s.screen.say("%s  %s; the last after %s", s.clock(), st.who, st.after)
	return moves, nil
}

// summary says what there was of moves since the keys were shared out first, and who owns them.
func (s sharing) summary(since time.Duration) string {
	moves := s.moves(since)
	gaps := make([]time.Duration, len(moves))
	for i, m := range moves {
		gaps[i] = m.gap()
	}
	slices.Sort(gaps)
	var each []string
	for _, r := range s.running() {
		each = append(each, fmt.Sprintf("%s %d", r.name, s.owned()[r]))
	}
	return fmt.Sprintf("%s; %d moves, median gap %s", strings.Join(each, ", "), len(moves), short(gaps[len(gaps)/2]))
}

// owner returns the row of the process that works on a key, nil if none does.
func (s sharing) owner(key string) *row {
	if all := s.sessions(key); all != nil && all[len(all)-1].ended == 0 {
		return all[len(all)-1].row
	}
	return nil
}

// owned returns on how many keys each works.
func (t *timeline) owned() map[*row]int {
	owned := map[*row]int{}
	for _, r := range t.rows {
		for _, s := range r.sessions {
			if s.ended == 0 {
				owned[r]++
			}
		}
	}
	return owned
}

// running returns the rows whose process was not asked to end.
func (s sharing) running() (rows []*row) {
	for _, r := range s.rows {
		if r.process != nil && r.process.asked == 0 {
			rows = append(rows, r)
		}
	}
	return rows
}

// balanced reports whether a running process works on each key, and on as many as any other.
func (s sharing) balanced() bool {
	running := s.running()
	for _, key := range s.keys {
		if !slices.Contains(running, s.owner(key)) {
			return false
		}
	}
	least, most := len(s.keys), 0
	for _, r := range running {
		n := s.owned()[r]
		least, most = min(least, n), max(most, n)
	}
	return most-least <= 1
}

// settled waits for a while, in which no key may move.
func (s sharing) settled(ctx context.Context) error {
	at := boottime.Now()
	if err := s.pause(ctx, calm); err != nil {
		return err
	}
	if moves := s.moves(at); !s.balanced() || len(moves) > 0 {
		return fmt.Errorf("%d keys moved, and nothing had happened", len(moves))
	}
	return nil
}

// joined waits until a process is a member.
func (s sharing) joined(ctx context.Context, r *row) error {
	for over := boottime.Now() + patience; ; {
		if _, err := s.leaseOf(ctx, r); err == nil || boottime.Now() > over {
			return err
		}
		if err := s.pause(ctx, frameTime); err != nil {
			return err
		}
	}
}

// leaseOf returns the name of a member's Lease.
func (s sharing) leaseOf(ctx context.Context, r *row) (string, error) {
	leases, err := s.leases.List(ctx, metav1.ListOptions{LabelSelector: "leasehold-go.github.io/group=" + groupName})
	if err != nil {
		return "", err
	}
	for _, l := range leases.Items {
		if holder := l.Spec.HolderIdentity; holder != nil && strings.HasPrefix(*holder, r.name+"_") {
			return l.Name, nil
		}
	}
	return "", fmt.Errorf("%s is no member of %s", r.name, groupName)
}
