package leasehold

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cenkalti/backoff/v4"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/internal/oracle"
	"github.com/leasehold-go/leasehold/leasetest"
)

// FuzzWatch lets two candidates compete while their watches bring what data says: events of all types,
// with objects that are odd, old, replayed, of another kind or nil, resourceVersions that make no sense
// or have never been, lies about who holds the lease, silence, endings. Hands steal, delete and re-create the
// Lease, and requests fail, as data says too. All that the stream says is believed at most until the
// API server contradicts it, because a candidate writes by what it knows and not by what it is told:
// there are never two sessions, and no lease is taken before its time.
//
// A lie never has the resourceVersion that the Lease has, or will have: then nothing contradicts it.
func FuzzWatch(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 4, 1, 1, 0, 0, 0, 2, 0, 5, 11, 1, 9, 0, 4, 2, 1, 0, 0, 0, 2, 0, 12})
	f.Add([]byte{6, 0, 1, 6, 1, 2, 6, 2, 3, 7, 0, 10, 11, 0, 3, 8, 1, 12, 9, 20, 5})
	f.Add([]byte{13, 1, 5, 13, 2, 13, 14, 8, 15, 3, 1, 9, 16, 12, 17, 0, 13, 17, 0, 9})
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) { newStream(t, data).play() })
	})
}

// longestStream bounds how many things happen in one stream.
const longestStream = 48

// A stream is what happens to two candidates.
type stream struct {
	*testing.T
	srv        *leasetest.Server
	data       []byte // what is still to happen
	candidates []*streamed

	top     uint64        // the greatest version told of in an event that never was
	deaf    bool          // no version is greater than what was told
	honest  bool          // no event tells what never was
	lied    bool          // an event said what never was
	longest time.Duration // that anybody, or any lie, gave a holder
	trouble time.Time     // when a request, or the link, was last told to fail
	oracle  *oracle.Oracle

	mu        sync.Mutex // protects what follows; may be taken with the server locked
	deletions int
	forced    map[*oracle.Term]bool // somebody declared the lease free while its session was live
	sessions  []*streamedSession
}

// A streamed candidate is one whose watches the stream controls.
type streamed struct {
	name    string
	client  *leasetest.Client
	returns chan struct{}
	silent  bool // the watches that are open bring nothing
	cut     bool
	ended   error

	mu       sync.Mutex // protects what follows
	fail     []leasetest.Fault
	second   time.Time
	requests int
}

type streamedSession struct {
	Session
	of      *streamed
	term    *oracle.Term
	mustEnd time.Time // an operator gave the lease to somebody else: by then it has been told
}

func newStream(t *testing.T, data []byte) *stream {
	s := &stream{T: t, srv: leasetest.NewServer(), data: data, top: 1 << 40, longest: D,
		forced: map[*oracle.Term]bool{}}
	s.oracle = oracle.New(ns, name, oracle.Rules{
		Fail:      s.Errorf,
		Over:      []error{ErrLost, ErrReleased},
		Candidate: func(client string) (rate float64, ok bool) { return 1, client == "a" || client == "b" },
		Excuse:    s.excuse,
	})
	for _, name := range []string{"a", "b"} {
		c := &streamed{name: name, client: s.srv.Client(name), returns: make(chan struct{})}
		c.client.OnRequest(func(leasetest.Request) leasetest.Fault { return s.request(c) })
		s.candidates = append(s.candidates, c)
	}
	s.srv.OnCommit(s.committed)
	return s
}

// byte returns what data says next; 0 once it has said all.
func (s *stream) byte() int {
	if len(s.data) == 0 {
		return 0
	}
	b := s.data[0]
	s.data = s.data[1:]
	return int(b)
}

func pick[T any](s *stream, of ...T) T { return of[s.byte()%len(of)] }

// play lets it all happen, and then wants fair weather to bring a leader and a clean end.
func (s *stream) play() {
	ctx, stop := context.WithCancel(s.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	var opts []Option
	first := s.byte()
	s.honest = first&4 != 0
	if first&3 == 3 {
		opts = append(opts, WithDeleteOnRelease())
	}
	for i, c := range s.candidates {
		running.Go(func() { s.campaign(ctx, uint64(i), c, opts) })
		synctest.Wait()
	}
	for n := 0; n < longestStream && len(s.data) > 0 && !s.Failed(); n++ {
		s.happen()
		synctest.Wait()
		s.look()
		time.Sleep(pick(s, 0, 0, time.Millisecond, 20*time.Millisecond, 300*time.Millisecond, time.Second,
			I-time.Millisecond, I, 5*time.Second, 9*time.Second, R, D-time.Millisecond, D, 22*time.Second))
		synctest.Wait()
		s.look()
	}
	s.calm()
	last := s.leader()
	stop()
	running.Wait()
	synctest.Wait()
	for _, c := range s.candidates {
		if n := c.client.WatchCount(); n > 0 {
			s.Errorf("%s left %d watches", c.name, n)
		}
		if c.ended != context.Canceled {
			s.Errorf("%s ended with %v", c.name, c.ended)
		}
	}
	if last != nil && last.term == s.oracle.Latest() {
		s.Errorf("%s left the lease held", last.term.Identity)
	}
}

// calm ends all faults, and wants a leader. A lie about a holder for many years is waited for.
func (s *stream) calm() {
	for _, c := range s.candidates {
		c.mu.Lock()
		c.fail = nil
		c.mu.Unlock()
		c.client.Partition(false)
		c.client.CloseWatches(nil)
	}
	limit := 2*s.longest + 2*D
	if limit > time.Hour || s.Failed() {
		return
	}
	for began := time.Now(); ; time.Sleep(500 * time.Millisecond) {
		synctest.Wait()
		s.look()
		if s.leader() != nil {
			break
		}
		if time.Since(began) > limit {
			s.Errorf("nobody leads after %v of fair weather", limit)
			return
		}
	}
	time.Sleep(D)
	s.look()
}

// campaign is the life of a candidate.
func (s *stream) campaign(ctx context.Context, id uint64, c *streamed, opts []Option) {
	luck := rand.New(rand.NewPCG(id, 0))
	opts = append(opts, WithLease(name), WithNamespace(ns), WithIdentity(c.name), WithClient(c.client),
		WithError(&c.ended),
		inVirtualTime, unlogged, WithOverrun(func(Session) {}),
		WithBackOff(func() backoff.BackOff {
			return backoff.NewExponentialBackOff(backoff.WithInitialInterval(50*time.Millisecond),
				backoff.WithMaxInterval(longestDelay), backoff.WithRandomizationFactor(0),
				backoff.WithMaxElapsedTime(0))
		}),
		WithChance(func(n time.Duration) time.Duration { return time.Duration(luck.Int64N(int64(n))) }))
	for session := range Sessions(ctx, opts...) {
		s.begun(c, session)
		select {
		case <-session.Done():
		case <-c.returns:
		}
	}
}

// happen does the next thing.
func (s *stream) happen() {
	what, c := s.byte(), pick(s, s.candidates...)
	for _, c := range s.candidates {
		c.mu.Lock()
		if c.cut || len(c.fail) > 0 {
			s.trouble = time.Now()
		}
		c.mu.Unlock()
	}
	switch what % 18 {
	case 6:
		c.client.CloseWatches(pick[error](s, nil, leasetest.InternalError(), apierrors.NewResourceExpired("too old"),
			errors.New("odd")))
		c.silent = false
	case 7:
		c.client.SilenceWatches()
		c.silent = true
	case 8:
		c.client.ResumeWatches(pick(s, true, false))
		c.silent = false
	case 9:
		c.client.ReplayWatches(s.byte())
	case 10:
		s.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
			l.Labels = map[string]string{"n": strconv.Itoa(s.byte())}
		})
	case 11:
		s.steal(pick(s, "thief", "a", "b"), int32(pick(s, 15, 12, 20)))
	case 12:
		s.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
			if key, held := oracle.KeyOf(l); held && s.oracle.Term(key).Client == "" {
				l.Spec.RenewTime = &metav1.MicroTime{Time: time.Now()}
			}
		})
	case 13:
		s.free(pick(s, "delete", "re-create", "release"))
	case 14:
		s.srv.Compact()
		s.srv.CloseWatches(nil)
	case 15:
		s.trouble = time.Now()
		fault := pick(s,
			leasetest.Fault{Err: leasetest.InternalError()}, leasetest.Fault{Err: leasetest.ConnectionRefused()},
			leasetest.Fault{Drop: leasetest.TheReply},
			leasetest.Fault{Drop: leasetest.TheReply, Err: leasetest.ConnectionReset()},
			leasetest.Fault{Drop: leasetest.TheRequest}, leasetest.Fault{Err: leasetest.TooManyRequests(time.Second)})
		c.mu.Lock()
		c.fail = slices.Repeat([]leasetest.Fault{fault}, pick(s, 1, 2, 5, 1000))
		c.mu.Unlock()
	case 16:
		select {
		case c.returns <- struct{}{}:
		default:
		}
	case 17:
		s.trouble = time.Now()
		c.cut = !c.cut
		c.client.Partition(c.cut)
	default:
		if s.honest {
			c.client.ReplayWatches(1 + s.byte())
			return
		}
		s.tell(c)
	}
}

// steal gives the lease to somebody else by hand.
func (s *stream) steal(identity string, duration int32) {
	now := metav1.NewMicroTime(time.Now())
	stolen := s.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
		l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds = &identity, &duration
		l.Spec.AcquireTime, l.Spec.RenewTime = &now, &now
	})
	if stolen == nil {
		return
	}
	s.longest = max(s.longest, time.Duration(duration)*time.Second)
	if x := s.leader(); x != nil && x.mustEnd.IsZero() {
		x.mustEnd = time.Now().Add(I + time.Second)
	}
}

// free lets a hand declare that nobody holds the lease. Who holds it and has not heard leads on; only one
// deletion that nobody lied about is waited out by all.
func (s *stream) free(how string) {
	l := s.srv.Lease(ns, name)
	if l == nil {
		return
	}
	if how == "release" {
		s.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec = coordinationv1.LeaseSpec{} })
	} else {
		s.srv.Delete(ns, name)
	}
	if how == "re-create" {
		s.srv.Put(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.sessions {
		if x.Err() == nil && (how == "release" || s.lied || s.deletions > 1) {
			s.forced[x.term] = true
		}
	}
}

// tell sends a candidate an event.
func (s *stream) tell(c *streamed) {
	event := watch.Event{Type: pick(s, watch.Modified, watch.Modified, watch.Added, watch.Deleted, watch.Bookmark,
		watch.Error, "", "ODD")}
	var version uint64
	switch s.byte() % 8 {
	case 0:
	case 1:
		event.Object = (*coordinationv1.Lease)(nil)
	case 2:
		event.Object = &metav1.Status{Code: int32(pick(s, 410, 500, 0, -1)), Reason: metav1.StatusReasonExpired}
	case 3:
		event.Object = pick[runtime.Object](s, &coordinationv1.LeaseList{}, &metav1.Status{}, &metav1.APIGroup{},
			(*metav1.Status)(nil))
	default:
		event.Object, version = s.lie()
	}
	x := s.leader()
	news := version > s.top
	s.top = max(s.top, version)
	c.client.SendEvent(event)
	if x == nil || x.of != c || !news || s.deaf || c.silent || c.cut || c.client.WatchCount() == 0 ||
		time.Since(s.trouble) < 2*D {
		return
	}
	l, ok := event.Object.(*coordinationv1.Lease)
	if !ok || event.Type != watch.Added && event.Type != watch.Modified {
		return
	}
	if key, held := oracle.KeyOf(l); held && l.Name == name && l.UID != "" && key.Identity != c.name {
		synctest.Wait()
		if x.Err() == nil {
			s.Errorf("%s leads on though its watch told that %q holds the lease", c.name, key.Identity)
		}
	}
}

// lie makes a Lease that may never have been, and returns its version if that is one.
func (s *stream) lie() (*coordinationv1.Lease, uint64) {
	l := s.srv.Lease(ns, name)
	if l == nil {
		l = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: "gone",
			ResourceVersion: s.srv.ResourceVersion()}}
	}
	what := s.byte()
	if what&1 != 0 {
		l.Spec.HolderIdentity = pick(s, nil, new(""), new("a"), new("b"), new("thief"), new("\xff\x00\u202e"))
	}
	if what&2 != 0 {
		l.Spec.LeaseDurationSeconds = pick(s, nil, new(int32(0)), new(int32(-1)), new(int32(1)), new(int32(20)),
			new(int32(math.MaxInt32)), new(int32(math.MinInt32)))
	}
	// A time that nobody writes: those that are written have no nanoseconds.
	odd := time.Now().Truncate(time.Microsecond).Add(500 * time.Nanosecond)
	times := []*metav1.MicroTime{nil, {}, {Time: odd}, {Time: odd.Add(time.Hour)}, {Time: odd.Add(-time.Hour)},
		{Time: time.Unix(math.MaxInt32*1000, 500)}}
	if what&4 != 0 {
		l.Spec.AcquireTime = pick(s, times...)
	}
	if what&8 != 0 {
		l.Spec.RenewTime = pick(s, times...)
	}
	if what&16 != 0 {
		l.Spec.LeaseTransitions = pick(s, nil, new(int32(-5)), new(int32(math.MaxInt32)))
	}
	if what&32 != 0 {
		l.UID = pick[types.UID](s, "", "another", "1")
	}
	if what&64 != 0 {
		l.Name = pick(s, "", "another")
	}
	if d := l.Spec.LeaseDurationSeconds; d != nil {
		s.longest = max(s.longest, time.Duration(*d)*time.Second)
	}
	version, _ := strconv.ParseUint(l.ResourceVersion, 10, 64)
	switch s.byte() % 4 {
	case 0:
		l.ResourceVersion = pick(s, "", "0", "-1", "x", "1.5", "99999999999999999999999", " 1", "18446744073709551615")
		s.deaf = s.deaf || l.ResourceVersion == "18446744073709551615"
		version = 0
	case 1:
		version -= min(version-1, 1+uint64(s.byte()))
		l.ResourceVersion = strconv.FormatUint(version, 10)
	case 2:
		version = s.top + 1 + uint64(s.byte())
		l.ResourceVersion = strconv.FormatUint(version, 10)
	case 3:
		if what != 0 {
			l.ResourceVersion = "1"
		}
	}
	s.lied = true
	return l, version
}

// committed checks a change of the Lease. The server is locked.
func (s *stream) committed(c leasetest.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.oracle.Committed(c)
	if c.Type == watch.Deleted {
		s.deletions++
	}
}

// excuse is the oracle's rule Excuse. The lock is held by those who ask the oracle.
func (s *stream) excuse(old, _ *oracle.Term) string {
	if s.forced[old] {
		return "declared free"
	}
	return ""
}

// begun checks a session that begins.
func (s *stream) begun(c *streamed, session Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions = append(s.sessions, &streamedSession{Session: session, of: c, term: s.oracle.Begin(c.name, session)})
}

// look checks what the sessions report about themselves.
func (s *stream) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.oracle.Look()
	for _, x := range s.sessions {
		err := x.Err()
		if errors.Is(err, ErrLost) && !strings.Contains(err.Error(), "not renewed") && !s.lied && !x.term.Ended {
			s.Errorf("%s: %v, which nobody told", x.of.name, err)
		}
		if err == nil && !x.mustEnd.IsZero() && time.Now().After(x.mustEnd) && x.mustEnd.Sub(s.trouble) > 2*D {
			s.Errorf("%s leads on though the lease was stolen", x.of.name)
		}
	}
}

// leader returns the session that is live, nil if there is none.
func (s *stream) leader() *streamedSession {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.sessions {
		if x.Err() == nil {
			return x
		}
	}
	return nil
}

// request decides what becomes of a request, and judges how many there are.
func (s *stream) request(c *streamed) (fault leasetest.Fault) {
	c.mu.Lock()
	if second := time.Now().Truncate(time.Second); second != c.second {
		c.second, c.requests = second, 0
	}
	c.requests++
	tooMany := c.requests > 60
	if len(c.fail) > 0 {
		fault, c.fail = c.fail[0], c.fail[1:]
	}
	c.mu.Unlock()
	if tooMany {
		s.Errorf("%s: %d requests within a second", c.name, c.requests)
		time.Sleep(time.Second) // so that it ends
	}
	return fault
}
