package leasehold

import (
	"context"
	"slices"
	"time"
)

// A subscription is one reflector's part in the shared watch.
type subscription struct {
	watch     *sharedWatch
	reflector *reflector
	round     uint64 // in which the Lease was last read; protected by the watch's mu
}

// unread is the round of a subscriber that has not read its Lease in any. Rounds begin at 1: nobody is served before
// the first watch, which is opened afresh.
const unread = 0

// close removes the subscription. The last one ends the shared watch.
func (s *subscription) close() {
	w, name := s.watch, s.reflector.lease.name
	clients.Lock()
	w.mu.Lock()
	if i := slices.Index(w.byName[name], s); i >= 0 {
		w.byName[name] = slices.Delete(w.byName[name], i, i+1)
		w.count--
	}
	if len(w.byName[name]) == 0 {
		delete(w.byName, name)
	}
	last := w.count == 0
	if last && w.client.watches[w.namespace] == w {
		delete(w.client.watches, w.namespace)
	}
	w.mu.Unlock()
	clients.Unlock()
	if last && w.done != nil {
		w.stop()
		<-w.done
		w.user.wait()
	}
}

// used reports whether the reflector follows by the shared watch.
func (s *subscription) used() bool { return s.watch.current().mode != ownWatches }

// serves reports whether the shared watch brings the news.
func (s *subscription) serves() bool { return s.watch.current().mode == serving }

// catchUp makes sure that the reflector knows all that the shared watch does not bring, and reports whether it does
// now, so that the reflector needs no goroutine. It ends early where the reflector should pause and begin again.
func (s *subscription) catchUp(ctx context.Context) (served bool, err error) {
	r := s.reflector
	for ctx.Err() == nil {
		state, read := s.current()
		check := r.takeCheck()
		switch {
		case state.mode == ownWatches:
			return false, nil
		case state.mode == polling:
			s.poll(ctx, check)
		case !read:
			err = s.readInRound(ctx, state.round)
		case check:
			err = s.checkAndReport(ctx, state.serial)
		case r.sleepUntilWoken():
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// current returns the state of the shared watch, and whether the Lease was read in its round.
func (s *subscription) current() (state sharedState, read bool) {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	return s.watch.state, s.round == s.watch.state.round
}

func (s *subscription) setRound(round uint64) {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	s.round = round
}

// poll reads now and then while the shared watch does not serve, and at once where a check was asked for.
func (s *subscription) poll(ctx context.Context, check bool) {
	r := s.reflector
	wait, following := r.interval, "poll"
	if !r.store.latest().known { // perhaps the watch opens just now; then one read is enough
		wait, following = min(longestDelay, wait), ""
	}
	r.setFollowing(following)
	if check || r.pause(ctx, wait) {
		r.read(ctx) // logs its own failure
	}
}

// readInRound reads the Lease after the watch was opened afresh.
func (s *subscription) readInRound(ctx context.Context, round uint64) error {
	r := s.reflector
	if r.store.latest().known { // other subscribers read now too
		longest := min(r.interval/2, time.Duration(s.watch.size())*2*time.Millisecond)
		sleep(ctx, r.clock, r.between(0, longest))
	}
	s.setRound(round) // before the read, so that an event that cannot be read in the meantime is not forgotten
	if _, err := r.read(ctx); err != nil {
		s.setRound(unread)
		r.setFollowing("")
		return err
	}
	return nil
}

// checkAndReport checks whether the watch with that serial missed something, and makes it be opened again then.
func (s *subscription) checkAndReport(ctx context.Context, serial int) error {
	r := s.reflector
	requested := r.reopenRequested()
	reopen, err := r.check(ctx)
	if err != nil {
		r.requestCheck() // still
		return err
	}
	if requested && !r.store.latest().exists() {
		s.watch.reopenAfresh()
		return nil
	}
	for reopen && ctx.Err() == nil && s.watch.reportMissed(r, serial) {
		r.pause(ctx, r.interval)
	}
	return nil
}

// notBrought makes the watch be opened again if it did not bring version, which was written long ago.
func (s *subscription) notBrought(version uint64) {
	w := s.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if !s.reflector.store.watchBrought(version) {
		w.reopenLocked(version)
	}
}
