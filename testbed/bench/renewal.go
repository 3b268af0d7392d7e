package main

import (
	"runtime"
	"time"
)

// renewalPeriod is how often leases are renewed where renewals are what is measured: as often as client-go's default rate
// limit lets one candidate write.
const renewalPeriod = 250 * time.Millisecond

// renewal measures what one renewal costs this process, TLS and, with leasehold, the watch event that follows included: CPU
// time and allocations of a process in which leaders do nothing but renew.
func (b *bench) renewal() error {
	t := defaults
	t.period, t.interval = renewalPeriod, renewalPeriod
	const rounds = 2
	var cpu, allocs, bytes [len(sides)][]float64
	for range rounds {
		for which := range sides {
			leaders, err := b.leadersOf(which, 2*b.victims, t)
			if err != nil {
				return err
			}
			if err := b.sleep(2 * renewalPeriod); err != nil {
				return err
			}
			c, err := b.cost(leaders)
			if err != nil {
				return err
			}
			cpu[which], allocs[which], bytes[which] = append(cpu[which], c.cpu), append(allocs[which], c.allocs), append(bytes[which], c.bytes)
			if err := b.halt(leaders...); err != nil {
				return err
			}
		}
	}
	b.report.add(row{What: "a renewal: client CPU time", Unit: "s", ClientGo: summarize(cpu[elector]...), Leasehold: summarize(cpu[ours]...)}, nil)
	b.report.add(row{What: "a renewal: allocations", ClientGo: summarize(allocs[elector]...), Leasehold: summarize(allocs[ours]...)}, nil)
	b.report.add(row{What: "a renewal: memory allocated", Unit: "B", ClientGo: summarize(bytes[elector]...), Leasehold: summarize(bytes[ours]...)}, nil)
	return nil
}

// A cost is what one renewal takes.
type cost struct{ cpu, allocs, bytes float64 }

func (b *bench) cost(leaders []*candidate) (c cost, err error) {
	writes := func() (n int64) {
		for _, c := range leaders {
			n += c.writes.Load()
		}
		return n
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu, err := ownCPUTime()
	if err != nil {
		return c, err
	}
	renewals := -writes()
	if err := b.sleep(b.renewing); err != nil {
		return c, err
	}
	renewals += writes()
	used, err := ownCPUTime()
	if err != nil {
		return c, err
	}
	runtime.ReadMemStats(&after)
	n := float64(max(1, renewals))
	return cost{
		(used - cpu).Seconds() / n, float64(after.Mallocs-before.Mallocs) / n, float64(after.TotalAlloc-before.TotalAlloc) / n,
	}, nil
}
