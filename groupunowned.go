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

// report logs, once for each time, that nobody has owned a key for the duration, although it does not rest. It returns
// after which time to be called again.
func (u *unownedKeys) report(v view) time.Duration {
	u.update(v)
	c := u.group.campaign
	var late []string
	next := maxDuration
	for key, since := range u.since {
		if since.IsZero() {
			continue
		}
		if left := later(since.Add(c.options.duration), u.rests.until(key)).Sub(v.now); left > 0 {
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
	for i, e := range v.table.table.Entries {
		if e.Owner >= 0 {
			continue
		}
		key := v.table.names[i]
		u.since[key] = v.now
		if since, ok := before[key]; ok {
			u.since[key] = since
		}
	}
}
