package leasehold

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
)

// A Share says who owns the keys of a group.
type Share struct {
	Owners  map[string]string // by key, a bucket's number in decimal: who owns it, or is still to return it
	Unowned []string          // the keys that nobody owns, in order
	Moving  []string          // the keys that were asked back from their owners, in order
	Members []Member          // in the order in which they joined
}

// A Member is a process that takes part in a group.
type Member struct {
	Identity string
	Weight   int       // 0 for one that leaves
	Keys     int       // how many it owns
	Since    time.Time // when its term began, by its own clock
}

// Shares watches who owns what in a group, which WithLease names, without taking part: it yields the present state at
// once, then each change, at most one a second, and the newest if the body is slow. A group that nobody has begun is
// the zero Share. The state is that of the group's table: a member that crashed is shown until others have its keys.
//
// The sequence ends when ctx ends or the loop is left (see WithError). It panics if the options are invalid, unless
// there is a WithError. It needs the right to get and watch Leases.
func Shares(ctx context.Context, opts ...Option) iter.Seq[Share] {
	o, invalid := newGroupOptions(ctx, opts)
	if invalid == nil && o.group.given != nil {
		invalid = errors.New("leasehold: Shares: " + o.group.given[0] + " is for Spread and Join")
	}
	return sequence(ctx, o, invalid, func(cs campaigns, yield func(Share) bool) error {
		c := cs[0]
		w := &shareWatch{group: newGroup(c, o.name, 0), news: newWakeup()}
		var following errgroup.Group
		defer following.Wait()
		var stop context.CancelFunc
		w.ctx, stop = context.WithCancel(c.ctx)
		defer stop()
		following.Go(func() error {
			w.group.client.follow(w.ctx, "get table", o.name, w.group.delays.table, w)
			return nil
		})
		for {
			select {
			case <-w.news:
			case <-c.ctx.Done():
				return context.Cause(c.ctx)
			}
			if !yield(w.latest()) {
				return nil
			}
			sleep(c.ctx, c.clock, time.Second)
		}
	})
}

// A shareWatch keeps the newest Share.
type shareWatch struct {
	group *group
	ctx   context.Context // ends when the loop is left
	news  wakeup

	mu     sync.Mutex // protects following
	known  bool
	newest uint64
	share  Share
}

func (w *shareWatch) latest() Share {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.share
}

func (w *shareWatch) setAll(leases []*coordinationv1.Lease, _ uint64) {
	if len(leases) > 0 {
		w.update(leases[0], false)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.setLocked(Share{})
}

func (w *shareWatch) update(lease *coordinationv1.Lease, deleted bool) {
	g := w.group
	v, err := g.tableOf(lease)
	if err != nil {
		return // that no API server sends
	}
	share := Share{}
	if !deleted {
		if g.retry(w.ctx, g.delays.keys, func() error { return g.readTable(w.ctx, &v) }) != nil {
			return
		}
		if v.foreign {
			v.err = errForeignTable
		}
		if v.err != nil {
			g.campaign.log.warn("the group's table cannot be read", "group", g.client.group, "error", v.err)
		} else {
			share = shareOf(v)
			g.forgetSets(map[string]bool{v.table.Keys: true})
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if v.record.version < w.newest {
		return
	}
	w.newest = v.record.version
	if v.err == nil || !w.known {
		w.setLocked(share)
	}
}

// setLocked records the share. The caller holds mu.
func (w *shareWatch) setLocked(share Share) {
	w.known, w.share = true, share
	w.news.signal()
}

// shareOf returns what a table says.
func shareOf(v tableView) Share {
	t := v.table
	share := Share{Owners: map[string]string{}}
	keys := make([]int, len(t.Rows))
	for i, e := range t.Entries {
		if e.Owner < 0 {
			share.Unowned = append(share.Unowned, v.names[i])
			continue
		}
		if e.Asked != 0 {
			share.Moving = append(share.Moving, v.names[i])
		}
		share.Owners[v.names[i]] = t.Rows[e.Owner].Identity
		keys[e.Owner]++
	}
	for i, r := range t.Rows {
		share.Members = append(share.Members, Member{r.Identity, r.Weight, keys[i], time.UnixMicro(r.Acquired)})
	}
	return share
}

var errForeignTable = errors.New("the Lease exists and is not the table of a group: WithLease has to name a group")
