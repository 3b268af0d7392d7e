package main

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// blackHole makes the connections of leaders lead nowhere, while new ones work. Then it cuts leaders off from
// everything for a time that is shorter than the renew deadline: the connections of before stay dead, new ones work
// afterwards.
func (b *bench) blackHole() error {
	if err := b.cutOff("connection black-holed", (*meter).swallow, 0); err != nil {
		return err
	}
	return b.cutOff(fmt.Sprintf("everything black-holed for %v", b.hole), (*meter).cut, b.hole)
}

// cutOff does something to the networks of leaders, for a while if that is not 0, and watches whether they go on
// leading: for as long as a lease lasts and then client-go's renew deadline, because an elector that gives up first
// tries to release, by the same connection, and tells its work only then.
func (b *bench) cutOff(what string, cut func(*meter), d time.Duration) error {
	leaders, err := b.leaders(b.victims, b.timing)
	if err != nil {
		return err
	}
	lost, begun := [len(sides)]float64{}, time.Now()
	for _, of := range leaders {
		for _, c := range of {
			cut(c.meter)
		}
	}
	if err := b.sleep(d); err != nil {
		return err
	}
	for _, of := range leaders {
		for _, c := range of {
			c.heal()
		}
	}
	if err := b.sleep(b.duration + b.deadline - d); err != nil {
		return err
	}
	var after [len(sides)][]float64
	for which, of := range leaders {
		for _, c := range of {
			select {
			case at := <-c.lost:
				lost[which]++
				after[which] = append(after[which], at.Sub(begun).Seconds())
			default:
			}
		}
		if err := b.halt(of...); err != nil {
			return err
		}
	}
	r := row{
		What: fmt.Sprintf("%s: sessions lost, of %d", what, b.victims), ClientGo: summarize(lost[elector]),
		Leasehold: summarize(lost[ours]), Goal: "0",
	}
	b.report.add(r, func() bool { return lost[ours] == 0 })
	b.report.add(row{What: what + ": lost after", Unit: "s", ClientGo: summarize(after[elector]...),
		Leasehold: summarize(after[ours]...)}, nil)
	return nil
}

// takeover writes another holder into the Leases of leaders, and measures from when that was asked for until the
// leader is told that it leads no more.
func (b *bench) takeover() error {
	leaders, err := b.leaders(b.victims, b.timing)
	if err != nil {
		return err
	}
	m := newMeter()
	defer m.hangUp()
	cfg := m.attach(b.server.Config())
	cfg.QPS = -1
	thief, err := coordinationv1client.NewForConfig(cfg)
	if err != nil {
		return err
	}
	leases := thief.Leases(metav1.NamespaceDefault)
	var taken [len(sides)][]time.Time
	for i := range b.victims {
		for which := range leaders {
			taken[which] = append(taken[which], time.Now())
			now := metav1.NowMicro().UTC().Format(metav1.RFC3339Micro)
			body := fmt.Appendf(nil, `{"spec":{"holderIdentity":"thief","acquireTime":%q,"renewTime":%q}}`, now, now)
			if _, err := leases.Patch(b.ctx, leaders[which][i].lease, types.MergePatchType, body,
				metav1.PatchOptions{FieldManager: "thief"}); err != nil {
				return err
			}
			if err := b.sleep(b.period / 20); err != nil {
				return err
			}
		}
	}
	var samples [len(sides)][]float64
	for which, of := range leaders {
		for i, c := range of {
			at, err := receive(b, "end of leadership", c.lost)
			if err != nil {
				return err
			}
			samples[which] = append(samples[which], at.Sub(taken[which][i]).Seconds())
		}
		if err := b.halt(of...); err != nil {
			return err
		}
	}
	r := row{
		What: "another holder appears: told after", Unit: "s", ClientGo: summarize(samples[elector]...),
		Leasehold: summarize(samples[ours]...), Goal: "<= 10 ms",
	}
	b.report.add(r, func() bool { return r.Leasehold.Max <= 0.010 })
	return nil
}

// leaders starts n leaders of as many Leases on each side, and waits until they have renewed.
func (b *bench) leaders(n int, t timing) (leaders [len(sides)][]*candidate, err error) {
	for which := range leaders {
		if leaders[which], err = b.leadersOf(which, n, t); err != nil {
			return leaders, err
		}
	}
	return leaders, b.sleep(t.period + t.period/4)
}

func (b *bench) leadersOf(which, n int, t timing) ([]*candidate, error) {
	leaders := make([]*candidate, n)
	for i := range leaders {
		name := b.lease("led")
		leaders[i] = b.start(which, name, name, t, nil)
	}
	for _, c := range leaders {
		if _, err := receive(b, "leader", c.led); err != nil {
			return nil, err
		}
	}
	return leaders, nil
}
