package leasehold

import (
	"slices"
	"time"
)

// unownedKeys are those that nobody owns, as the table says.
type unownedKeys struct {
	group *group
	rests *restingKeys

	since   map[string]time.Time // since when nobody has owned a key; zero once that was logged
	version uint64               // of the table that says so
}

// report logs, once for each time, that nobody has owned a key for the duration, although it does not rest, or for a
// second longer while the table gives nothing, because then that is certain for the duration. It returns after which
// time to be called again.
func (u *unownedKeys) report(v view) time.Duration {
	u.update(v)
	c := u.group.campaign
	limit := c.options.duration
	if !v.table.table.Open {
		limit += time.Second
	}
	var late []string
	next := maxDuration
	for key, since := range u.since {
		if since.IsZero() {
			continue
		}
		if left := later(since.Add(limit), u.rests.until(key)).Sub(v.now); left > 0 {
			next = min(next, left)
			continue
		}
		u.since[key] = time.Time{}
		late = append(late, key)
	}
	if late != nil {
		slices.Sort(late)
		c.log.warn("keys of the group have no owner",
			"group", u.group.client.group, "keys", late[:min(len(late), maxNamed)], "count", len(late))
	}
	return next
}

// update goes by the newest table.
func (u *unownedKeys) update(v view) {
	if u.version == v.table.record.version {
		return
	}
	before := u.since
	u.version, u.since = v.table.record.version, map[string]time.Time{}
	for _, key := range u.keys(v.table) {
		u.since[key] = v.now
		if since, ok := before[key]; ok {
			u.since[key] = since
		}
	}
}

// keys returns the keys that nobody owns: of those of the table or, while that has no names because it gives nothing,
// of those that this member knows.
func (u *unownedKeys) keys(v tableView) (unowned []string) {
	if t := v.table; !t.Open && t.Buckets == 0 {
		u.group.mu.Lock()
		defer u.group.mu.Unlock()
		return u.group.sets.published
	}
	for i, e := range v.table.Entries {
		if e.Owner < 0 {
			unowned = append(unowned, v.names[i])
		}
	}
	return unowned
}
