package simulation

import "time"

// event is something that is to happen: what, and to whom. It holds numbers only, so that tens of millions of them cost no garbage.
type event struct {
	at   time.Duration
	seq  uint32 // of two events at one time the one scheduled first comes first: a run depends on nothing but its seed
	who  int32
	turn int32 // of a pull: whether it still waits for this; see pull.turn
	kind kind
}

func (e event) before(other event) bool {
	return e.at < other.at || e.at == other.at && e.seq < other.seq
}

// queue gives events back in the order of their times. Only those of the present slot are kept in order (a heap), which stays small enough for the processor's cache; later ones wait in their slot as they
// came.
type queue struct {
	heap    []event
	slot    int // the present one
	later   [][]event
	waiting int       // events in later
	spare   [][]event // emptied slots, to be used again
	seq     uint32
}

const slotWidth = 250 * time.Millisecond

func (q *queue) push(e event) {
	q.seq++
	e.seq = q.seq
	slot := int(e.at / slotWidth)
	if slot <= q.slot {
		q.heap = append(q.heap, e)
		q.up(len(q.heap) - 1)
		return
	}
	for len(q.later) <= slot {
		q.later = append(q.later, nil)
	}
	if q.later[slot] == nil && len(q.spare) > 0 {
		last := len(q.spare) - 1
		q.later[slot], q.spare = q.spare[last], q.spare[:last]
	}
	q.later[slot] = append(q.later[slot], e)
	q.waiting++
}

func (q *queue) pop() (event, bool) {
	for len(q.heap) == 0 {
		if q.waiting == 0 {
			return event{}, false
		}
		q.slot++
		if q.later[q.slot] == nil {
			continue
		}
		q.spare = append(q.spare, q.heap)
		q.heap, q.later[q.slot] = q.later[q.slot], nil
		q.waiting -= len(q.heap)
		for i := len(q.heap) / 2; i >= 0; i-- {
			q.down(i)
		}
	}
	first, last := q.heap[0], len(q.heap)-1
	q.heap[0] = q.heap[last]
	q.heap = q.heap[:last]
	q.down(0)
	return first, true
}

func (q *queue) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !q.heap[i].before(q.heap[parent]) {
			return
		}
		q.heap[i], q.heap[parent] = q.heap[parent], q.heap[i]
		i = parent
	}
}

func (q *queue) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(q.heap); child++ {
			if q.heap[child].before(q.heap[least]) {
				least = child
			}
		}
		if least == i {
			return
		}
		q.heap[i], q.heap[least] = q.heap[least], q.heap[i]
		i = least
	}
}
