package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// A growth says with how many buckets and members to measure groups, each number of one with each of the other, and how
// many members to replace.
type growth struct {
	buckets, members []int
	rollouts         []int
	keys             int // that the members of a rollout share out
}

// parseGroup reads the size of a group as -group has it, for example 100,65536.
func parseGroup(s string) (g growth, err error) {
	members, buckets, found := strings.Cut(s, ",")
	m, err := strconv.Atoi(members)
	n, err2 := strconv.Atoi(buckets)
	if err = errors.Join(err, err2); err != nil || !found || m < 2 || n < 1 || n > 65536 {
		return g, fmt.Errorf("-group %q: want the number of members, at least 2, and of buckets, at most 65536; "+
			"for example 100,65536", s)
	}
	return growth{members: []int{m}, buckets: []int{n}}, nil
}

// A groupReport is what is said of a group of some size.
type groupReport struct {
	Buckets int     `json:"buckets"`
	Members int     `json:"members"`
	Begin   float64 `json:"begin"`  // seconds until all have their share, from when the first was started
	Writes  float64 `json:"writes"` // per second, of all, while nothing happens
	Events  float64 `json:"events"` // per second, to all, while nothing happens
	Client  float64 `json:"client"` // percent of a core, of all, while nothing happens
	Server  float64 `json:"server"` // percent of a core, above idle, while nothing happens
	Table   int     `json:"table"`  // bytes, at the end

	Crash       float64 `json:"crash"`       // seconds from its expiry until others have what a member had that crashed
	CrashWrites int     `json:"crashWrites"` // of the table and to fence it
	Join        float64 `json:"join"`        // seconds from when a member was started until it has its share
	JoinMoves   int     `json:"joinMoves"`   // of buckets
	JoinWrites  int     `json:"joinWrites"`  // of the table
}

// grow measures groups of all sizes, and rolling updates of large ones. What takes minutes is given up.
func (b *bench) grow() error {
	idle, err := b.cost(b.idle)
	if err != nil {
		return err
	}
	for _, g := range b.grown {
		if err := b.growGroups(g, idle); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) growGroups(g growth, idle cost) error {
	for _, members := range g.members {
		for _, buckets := range g.buckets {
			r, err := b.groupOf(buckets, members, idle)
			switch {
			case b.ctx.Err() != nil:
				return err
			case err != nil:
				b.report.note("%d members with %d buckets: %v", members, buckets, err)
			default:
				b.report.Groups = append(b.report.Groups, r)
			}
		}
	}
	for _, members := range g.rollouts {
		if err := b.groupRollouts(members, g.keys); err != nil {
			return err
		}
	}
	return nil
}

// groupOf measures one group: while nothing happens, a crash, and a member that joins.
func (b *bench) groupOf(buckets, count int, idle cost) (r groupReport, err error) {
	b.say("groups: %d members with %d buckets", count, buckets)
	r = groupReport{Buckets: buckets, Members: count}
	group, p := b.lease("group"), ring(buckets)
	var members []*groupMember
	defer func() { err = errors.Join(err, leave(members...)) }()
	began := time.Now()
	for i := range count {
		members = append(members, b.groupMember(group, fmt.Sprint("m", i), p))
	}
	shared, err := b.awaitShares(buckets, members...)
	if err != nil {
		return r, err
	}
	r.Begin = shared.Sub(began).Seconds()
	if err := b.sleep(b.duration / 2); err != nil {
		return r, err
	}
	before, err := b.counters()
	if err != nil {
		return r, err
	}
	steady, err := b.cost(b.groupWindow, metersOf(members)...)
	if err != nil {
		return r, err
	}
	after, err := b.counters()
	if err != nil {
		return r, err
	}
	r.Writes, r.Client, r.Server = steady.writes, steady.client-idle.client, steady.server-idle.server
	r.Events = (after.events - before.events) / after.at.Sub(before.at).Seconds()

	log, err := b.logWrites(group)
	if err != nil {
		return r, err
	}
	dead := members[0]
	dead.die()
	dead.stop()
	members = members[1:]
	shared, err = b.awaitShares(buckets, members...)
	r.Crash = shared.Sub(log.lastRenewal(dead.member).Add(b.duration)).Seconds()
	r.CrashWrites = log.tables() + log.freed()
	log.stop()
	<-dead.done // dead members end by themselves
	if err != nil {
		return r, err
	}
	if err := b.sleep(b.duration / 2); err != nil {
		return r, err
	}

	if log, err = b.logWrites(group); err != nil {
		return r, err
	}
	had := begunBy(members)
	began = time.Now()
	members = append(members, b.groupMember(group, "last", p))
	shared, err = b.awaitShares(buckets, members...)
	r.Join, r.JoinMoves, r.JoinWrites = shared.Sub(began).Seconds(), begunBy(members)-had, log.tables()
	log.stop()
	if err != nil {
		return r, err
	}
	r.Table, err = b.tableBytes(group)
	return r, err
}

// begunBy returns how often members began to own a key.
func begunBy(members []*groupMember) (n int) {
	for _, m := range members {
		n += int(m.begun.Load())
	}
	return n
}

func metersOf(members []*groupMember) (meters []*meter) {
	for _, m := range members {
		meters = append(meters, m.meter)
	}
	return meters
}

// tableBytes returns how large a group's table is.
func (b *bench) tableBytes(group string) (int, error) {
	m := newMeter()
	defer m.hangUp()
	client, err := coordinationv1client.NewForConfig(m.attach(b.server.Config()))
	if err != nil {
		return 0, err
	}
	lease, err := client.Leases(metav1.NamespaceDefault).Get(b.ctx, group, metav1.GetOptions{})
	if err != nil {
		return 0, err
	}
	return len(lease.Annotations["leasehold-go.github.io/table"]), nil
}

// groupRollouts replaces all members of a group one by one, as Deployments do it with maxSurge 1 and maxUnavailable 0,
// and with maxSurge 0 and maxUnavailable 1.
func (b *bench) groupRollouts(count, keys int) error {
	for _, order := range []struct {
		what     string
		newFirst bool
		most     float64
	}{{"new before old", true, 1.9}, {"old before new", false, 2.1}} {
		b.say("groups: rollout of %d members with %d keys, %s", count, keys, order.what)
		moves, err := b.groupRollout(count, keys, order.newFirst)
		if err != nil {
			return err
		}
		b.report.add(row{What: fmt.Sprintf("group, rollout of %d members with %d keys, %s: moves of a key", count, keys,
			order.what), Leasehold: summarize(moves), Goal: "<= " + digits(order.most),
			Reached: new(moves <= order.most)}, nil)
	}
	return nil
}

// groupRollout returns how often a key moves on average.
func (b *bench) groupRollout(count, keys int, newFirst bool) (moves float64, err error) {
	group, p := b.lease("group"), keyed(keys)
	var members, all []*groupMember
	defer func() { err = errors.Join(err, leave(members...)) }()
	start := func(name string) {
		m := b.groupMember(group, name, p)
		members, all = append(members, m), append(all, m)
	}
	for i := range count {
		start(fmt.Sprint("old", i))
	}
	if _, err := b.awaitShares(keys, members...); err != nil {
		return 0, err
	}
	if err := b.sleep(b.duration / 2); err != nil {
		return 0, err
	}
	had := begunBy(all)
	stop := func() error {
		first := members[0]
		members = members[1:]
		return leave(first)
	}
	for i := range count {
		if err := b.sleep(startsAfter); err != nil {
			return 0, err
		}
		if !newFirst {
			if err := stop(); err != nil {
				return 0, err
			}
			if err := b.sleep(startsAfter); err != nil {
				return 0, err
			}
		}
		start(fmt.Sprint("new", i))
		if !newFirst {
			continue
		}
		if err := b.sleep(readyAfter); err != nil {
			return 0, err
		}
		if err := stop(); err != nil {
			return 0, err
		}
	}
	if _, err := b.awaitShares(keys, members...); err != nil {
		return 0, err
	}
	return float64(begunBy(all)-had) / float64(keys), nil
}
