package leasehold

import "time"

// freshReads reads everything afresh where the watches seem to leave something out.
type freshReads struct {
	membership *membership

	last      time.Time // when everything was last read afresh
	unheard   time.Time // since when the watch lacks our own renewals; zero while it does not
	awaited   uint64    // a newer version of the table, reported by others and not read yet; 0 if none
	awaitedAt time.Time // when that version was first reported
}

// listen reads everything afresh if the watch of the members does not bring our own renewals: it is silent. It returns
// after which time to be called again.
func (f *freshReads) listen(v view) time.Duration {
	c := f.membership.group.campaign
	switch {
	case v.listed == 0:
		return maxDuration // it follows the assigner alone
	case c.store.latest().version <= v.members[v.me.Lease].seen.version:
		f.unheard = time.Time{}
		return c.options.renewInterval
	case f.unheard.IsZero():
		f.unheard = v.now
	}
	return f.readAfresh(v, f.unheard.Add(c.options.renewInterval/3))
}

// catchUp reads the table afresh if others have reported a newer one for longer than a watch takes. It ends the term if
// that version is not read within the renew deadline. The time for a still newer version begins when this one is read,
// so that a member that reads slowly keeps its term. It returns after which time to be called again.
func (f *freshReads) catchUp(v view) time.Duration {
	o := f.membership.group.campaign.options
	newest := newestReported(v)
	if newest <= v.table.record.version {
		f.awaited = 0
		return maxDuration
	}
	if f.awaited <= v.table.record.version {
		f.awaited, f.awaitedAt = newest, v.now
	}
	if v.now.Sub(f.awaitedAt) > o.renewDeadline {
		f.membership.session.lose(lostBecause(expired, "the group's table was not read for %v", o.renewDeadline))
		return maxDuration
	}
	return f.readAfresh(v, f.awaitedAt.Add(min(o.renewInterval/3, time.Second)))
}

// newestReported returns the newest version of the table that members have reported.
func newestReported(v view) (newest uint64) {
	for name, m := range v.members {
		// A report is older than the Lease that has it, or was made up.
		if term, held := termOf(name, m.seen.record); held && m.report.Acquired == term.Acquired &&
			m.report.Version < m.seen.version {
			newest = max(newest, m.report.Version)
		}
	}
	return newest
}

// readAfresh reads everything afresh, not before at, at most once in each renew interval, and not while a read that it
// would cancel may still be answered. It returns after which time to be called again.
func (f *freshReads) readAfresh(v view, at time.Time) time.Duration {
	c := f.membership.group.campaign
	interval := max(c.options.renewInterval, c.acquireTimeout.current())
	if wait := later(at, f.last.Add(interval)).Sub(v.now); wait > 0 {
		return wait
	}
	f.last = v.now
	f.membership.readTableAfresh()
	f.membership.roster.readAfresh()
	return interval
}
