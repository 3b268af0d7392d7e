package leasehold

// A wakeup tells one goroutine that there is something to look at: the goroutine receives from it, once for all the
// signals since it last did.
type wakeup chan struct{}

func newWakeup() wakeup { return make(wakeup, 1) }

// signal makes w ready to receive from. It never blocks.
func (w wakeup) signal() {
	select {
	case w <- struct{}{}:
	default:
	}
}
