package leasehold

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A Session is one term of leadership. It is a small value; copies are the same session. The zero
// Session is one that has ended.
type Session struct{ state sessionState }

// A sessionState is what a Session is about: a lease, or one key of a group.
type sessionState interface {
	Err() error
	context() context.Context
	validFor() time.Duration
	invalid() error // why the lease is not ours any more, or nil, whether or not the work should go on
	fencingToken() uint64
	firstHolder() Holder
	beat()
	release() error
}

// Context returns a context that is cancelled when leadership ends; context.Cause says why, as Err
// does. It is a child of the campaign's context and is to be given to all that the leader does.
//
// Its Err method is judged by the clock when it is called, so it is correct even if the process was
// stopped and no timer has fired yet. Contexts derived from it learn of the end when Done is closed.
func (s Session) Context() context.Context {
	if s.state == nil {
		return endedContext
	}
	return s.state.context()
}

// endedContext is the context of the zero Session.
var endedContext = func() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(ErrReleased)
	return ctx
}()

// Done returns a channel that is closed when leadership ends.
func (s Session) Done() <-chan struct{} { return s.Context().Done() }

// Err returns nil while the work may go on, else why the session ended: ErrLost, ErrReleased, ErrYielded, for a key of
// a group ErrMoved, or the cause of the campaign's context. It is judged by the clock when it is called.
func (s Session) Err() error {
	if s.state == nil {
		return ErrReleased
	}
	return s.state.Err()
}

// ValidFor returns for how long this process certainly holds the lease even if it cannot be renewed again; 0 when
// the lease was lost or released. It judges by the lease: once the campaign's context has ended, work that winds
// down may write for as long, although Err is not nil any more.
func (s Session) ValidFor() time.Duration {
	if s.state == nil {
		return 0
	}
	return s.state.validFor()
}

// FencingToken returns a number that is greater than that of every earlier session of this lease,
// even if the Lease was deleted in between: the resourceVersion of the write that acquired it. A
// store that remembers the greatest token it has seen, and refuses writes with a smaller one, is
// safe from a leader that was stopped between looking at Err and writing.
//
// With WithSlots it grows within each slot; tokens of different slots do not tell which session is valid. For a key of
// a group it is the version of the group's table in which this process first saw the key as its own.
//
// Kubernetes promises since version 1.35 that the resourceVersions of an object can be compared
// (KEP-5504). Restoring etcd from a backup can set them back.
func (s Session) FencingToken() uint64 {
	if s.state == nil {
		return 0
	}
	return s.state.fencingToken()
}

// Holder returns what the Lease said when this session acquired it. For a key of a group it is the Lease of this
// process as a member.
func (s Session) Holder() Holder {
	if s.state == nil {
		return Holder{}
	}
	return s.state.firstHolder()
}

// Release ends the session: it cancels the context, stops renewing, and releases the lease.
// Nothing that needs the lease may be running any more. It returns nil once the lease is free, ErrLost
// if it had been lost before, or the error of the release, after which it may be called again. Within a
// loop over Sessions there is no need to call it.
//
// In the work of Spread it ends the session, and the key is given back once the work has returned. For a session of a
// Ring it returns an error: call leave.
func (s Session) Release() error {
	if s.state == nil {
		return nil
	}
	return s.state.release()
}

// Guard returns a RoundTripper that passes requests to next while this process certainly holds the lease, also
// while work winds down after the campaign's context has ended, and refuses them afterwards. A nil next is
// http.DefaultTransport. A request that was passed on goes on when the session ends, unless it has the session's
// context.
func (s Session) Guard(next http.RoundTripper) http.RoundTripper {
	if next == nil {
		next = http.DefaultTransport
	}
	return guard{s, next}
}

type guard struct {
	session Session
	next    http.RoundTripper
}

func (g guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := g.session.invalid(); err != nil {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, fmt.Errorf("not sent: %w", err)
	}
	return g.next.RoundTrip(req)
}

// invalid returns why this process does not hold the lease any more, or nil.
func (s Session) invalid() error {
	if s.state == nil {
		return ErrReleased
	}
	return s.state.invalid()
}

// A Holder describes the process that holds a lease, as it wrote it into the Lease. The zero Holder means that nobody
// holds it.
type Holder struct {
	Namespace, Name, Identity string

	// AcquireTime and RenewTime are by the holder's clock. They are for people and are never
	// compared with a local clock.
	AcquireTime, RenewTime time.Time

	// Duration is for how long after a renewal others leave the lease to its holder; 0 when the
	// holder did not say.
	Duration time.Duration

	// Transitions counts how often the lease was acquired since it was created.
	Transitions int32
	// ExpiryTime is when the lease expires unless its holder is seen to renew it, by the local clock and as of
	// when the Holder was returned; zero if nobody holds it.
	ExpiryTime time.Time
	// Address is what the holder advertises (WithAdvertise); "" for nothing.
	Address string
}

// FromContext returns the session that ctx is the context of, or that it was derived from.
func FromContext(ctx context.Context) (Session, bool) {
	s, ok := ctx.Value(sessionKey{}).(Session)
	return s, ok
}

type sessionKey struct{}

// A sessionContext is the context of a session: one that looks at the clock before it says that
// nothing happened. Its Done channel is that of its parent, so that derived contexts need no goroutine to follow it.
type sessionContext struct {
	context.Context // the parent
	session         *session
}

func (c *sessionContext) Err() error {
	if c.Context.Err() == nil {
		c.session.checkTrust()
	}
	return c.Context.Err()
}

func (c *sessionContext) Value(key any) any {
	if key == (sessionKey{}) {
		return Session{c.session}
	}
	return c.Context.Value(key)
}

// A session is the state behind a Session: one term, from the write that acquired the lease until the body has
// returned and the lease was released, or lost. Its renewer keeps the term. The rest of the program learns three
// things from that: until when the lease may be trusted, that it was lost, and that it was renewed.
type session struct {
	campaign *campaign
	term     term
	token    uint64
	holder   Holder
	began    instant
	renewer  *renewer

	ctx    *sessionContext
	cancel context.CancelCauseFunc // ends the session's context

	until   atomic.Pointer[instant] // trusted until then: the start of the last good write + renew deadline
	renewed wakeup                  // until has moved
	beaten  atomic.Bool             // the work called Beat since the last check
	altered atomic.Bool             // renewals succeed, but the server stores another time than was sent

	losing sync.Once
	lost   chan struct{} // closed when the lease is lost
	cause  error         // why; readable once lost is closed

	doneOnce sync.Once
	done     chan struct{} // closed when the work is done: the body has returned, or Release was called

	successor     atomic.Pointer[string] // the candidate that the release names; nil until one is known
	delivered     atomic.Bool            // it was handed to the program
	overran       atomic.Bool            // the body goes on without the lease
	finished      bool                   // nothing is left to release; protected by finishing
	finishing     chan struct{}          // has room for the one that releases the lease
	closeCampaign func()                 // ends the campaign after a session of Acquire; nil in a loop
}

// newSession starts to keep the term that r shows, which was acquired by a write sent at sent. The session's context
// is a child of ctx.
func (c *campaign) newSession(ctx context.Context, r record, sent instant) *session {
	inner, cancel := context.WithCancelCause(ctx)
	s := &session{
		campaign:  c,
		term:      r.term(),
		token:     r.version,
		holder:    c.holder(r, wallTimeAt(c.clock, sent.mono.Add(c.options.duration))),
		began:     c.clock.now(),
		cancel:    cancel,
		renewed:   newWakeup(),
		lost:      make(chan struct{}),
		done:      make(chan struct{}),
		finishing: make(chan struct{}, 1),
	}
	s.ctx = &sessionContext{inner, s}
	until := sent.add(c.options.renewDeadline)
	s.until.Store(&until)
	s.renewer = newRenewer(ctx, s, sent)
	s.renewer.start()
	return s
}

// trustLeft returns how much trust is left. It is negative once trust has ended. The clock is read first: a renewal
// that comes after that must not be judged by a time before it.
func (s *session) trustLeft() time.Duration {
	now := s.campaign.clock.now()
	return s.until.Load().left(now)
}

// checkTrust loses the lease if trust has ended, whether or not a timer has fired.
func (s *session) checkTrust() {
	now := s.campaign.clock.now()
	until := *s.until.Load()
	left := until.left(now)
	if left > 0 {
		return
	}
	if awake := until.mono.Sub(now.mono); awake > 0 {
		s.lose(lostBecause(slept, "the clock jumped by %v (the machine slept?)",
			(awake - left).Round(time.Millisecond)))
		return
	}
	why := ""
	if s.altered.Load() {
		why = ": renewals succeeded, but the API server stored another renewTime than was sent"
	}
	s.lose(lostBecause(expired, "not renewed within %v%s", s.campaign.options.renewDeadline, why))
}

// lose ends the session because of cause. Nothing is written about this term any more.
func (s *session) lose(cause error) {
	s.losing.Do(func() {
		s.cause = cause
		close(s.lost)
		s.renewer.stepSoon()
	})
	s.cancel(s.cause)
}

// loss returns why the lease was lost, or nil.
func (s *session) loss() error {
	select {
	case <-s.lost:
		return s.cause
	default:
		return nil
	}
}

func (s *session) context() context.Context { return s.ctx }
func (s *session) fencingToken() uint64     { return s.token }
func (s *session) firstHolder() Holder      { return s.holder }

// Err returns why the session ended, or nil.
func (s *session) Err() error {
	s.ctx.Err() // judges by the clock
	return context.Cause(s.ctx)
}

// invalid returns why the lease is not ours any more, or nil. It is nil also while work winds down that should not go
// on.
func (s *session) invalid() error {
	if !s.workDone() { // free checks a session that is being released; a released one cannot be lost
		s.checkTrust()
	}
	if err := s.loss(); err != nil {
		return err
	}
	if s.workDone() {
		return ErrReleased
	}
	return nil
}

// validFor returns for how long the lease is certainly ours.
func (s *session) validFor() time.Duration {
	if s.invalid() != nil {
		return 0
	}
	return max(s.trustLeft(), 0)
}

// lostWhileWindingDown returns the loss that the session's context does not show, because the campaign's context had
// ended before.
func (s *session) lostWhileWindingDown() error {
	if loss := s.loss(); s.campaign.ctx.Err() != nil && context.Cause(s.ctx) != loss {
		return loss
	}
	return nil
}

// endWork records that the work is done.
func (s *session) endWork() {
	s.cancel(ErrReleased)
	s.doneOnce.Do(func() { close(s.done) })
	s.renewer.step()
}

// workDone reports whether the work is done.
func (s *session) workDone() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// finish ends the session: cancel, wait, free. It returns nil once the lease was released, the loss if it was lost,
// else the error of the release: only then does another call try again.
func (s *session) finish() error {
	s.endWork()
	s.finishing <- struct{}{} // no mutex: in a bubble of testing/synctest, time stands still for one that is waited for
	defer func() { <-s.finishing }()
	s.renewer.wait()
	s.campaign.current.CompareAndSwap(s, nil)
	if s.finished {
		return s.loss()
	}
	err := s.free()
	s.finished = err == nil || s.loss() != nil
	return err
}

// release ends the session because the program asked for it. A session of Acquire ends its campaign too.
func (s *session) release() error {
	s.endWork()
	if s.closeCampaign != nil {
		defer s.closeCampaign()
	}
	if err := s.loss(); err != nil {
		// The renewer has seen above that the work is done. If it called the function of WithOverrun before, that may
		// be the caller, and no renewal is in flight any more.
		if !s.overran.Load() {
			s.renewer.wait()
		}
		return err
	}
	return s.finish()
}

// callOverrun tells the program that work goes on without the lease. It reports whether there is a function for that,
// and calls returned when it has returned.
func (s *session) callOverrun(returned func()) bool {
	c := s.campaign
	if c.options.overrun == nil {
		c.log.error("work goes on without the lease; it should have stopped when its context was cancelled",
			"cause", s.cause, "fencingToken", s.token)
		return false
	}
	c.user.start("WithOverrun", noLimit, func() { c.options.overrun(Session{s}) }, returned)
	return true
}

// logLoss tells operators that the lease was lost.
func (s *session) logLoss() {
	s.campaign.stats.lost(s.cause)
	s.campaign.log.warn("lease lost", "cause", s.cause, "fencingToken", s.token)
	s.event("stopped leading")
}

// event tells Kubernetes what happened to our leadership, in client-go's words.
func (s *session) event(what string) {
	c := s.campaign
	if c.options.recorder == nil {
		return
	}
	c.user.post(func() {
		c.options.recorder.Eventf(&coordinationv1.Lease{
			TypeMeta:   metav1.TypeMeta{APIVersion: coordinationv1.SchemeGroupVersion.String(), Kind: "Lease"},
			ObjectMeta: metav1.ObjectMeta{Namespace: c.lease.namespace, Name: c.lease.name, UID: s.term.uid},
		}, "Normal", "LeaderElection", "%s %s", c.lease.identity, what)
	})
}
