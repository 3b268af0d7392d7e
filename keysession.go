package leasehold

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"time"
)

// A keySession is the state behind the Session of one key of a group. It lives as long as the member's own session and,
// within that, until the key is asked back or its work has returned.
type keySession struct {
	group  *group
	member *session
	key    string
	token  uint64
	ctx    *keyContext
	cancel context.CancelCauseFunc
	over   atomic.Bool // the work has returned

	// Protected by the group's mu:
	stopped time.Time // when the session ended; zero while it is live
	overdue bool      // that the work has not returned was logged
}

// newKeySession returns the session of a key that the table of a version gives to m.
func newKeySession(m *membership, key string, version uint64) *keySession {
	inner, cancel := context.WithCancelCause(m.session.ctx)
	s := &keySession{group: m.group, member: m.session, key: key, token: version, cancel: cancel}
	s.ctx = &keyContext{inner, s}
	return s
}

// A keyContext is the context of a key's session: it judges by the clock, as that of the member does.
type keyContext struct {
	context.Context
	session *keySession
}

func (c *keyContext) Err() error {
	if c.Context.Err() == nil {
		c.session.member.checkTrust()
	}
	return c.Context.Err()
}

func (c *keyContext) Value(key any) any {
	if key == (sessionKey{}) {
		return Session{c.session}
	}
	return c.Context.Value(key)
}

func (s *keySession) context() context.Context { return s.ctx }
func (s *keySession) fencingToken() uint64     { return s.token }
func (s *keySession) firstHolder() Holder      { return s.member.holder }
func (s *keySession) beat()                    {}

func (s *keySession) Err() error {
	s.ctx.Err() // judges by the clock
	return context.Cause(s.ctx)
}

// invalid returns why the key is not ours any more. Until the work has returned it is, even if it was asked back.
func (s *keySession) invalid() error {
	if s.over.Load() {
		return ErrReleased
	}
	return s.member.invalid()
}

func (s *keySession) validFor() time.Duration {
	if s.invalid() != nil {
		return 0
	}
	return max(s.member.trustLeft(), 0)
}

// errRingSession is why Release of a ring's session is refused.
var errRingSession = errors.New("leasehold: a session of a ring is not released: call leave, which Enter returned")

// release gives the key back once its work has returned.
func (s *keySession) release() error {
	if s.group.buckets > 0 {
		return errRingSession
	}
	if s.Err() == nil {
		s.cancel(ErrReleased)
	}
	return s.member.loss()
}

// bucket returns the number of a ring's bucket.
func (s *keySession) bucket() int {
	n, _ := strconv.Atoi(s.key) // it was made of a number
	return n
}
