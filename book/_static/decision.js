// The formulas of flashspec/theory/decision.py, exported once for the decision page: a test gives both 1,000 random settings.
const decide = (() => {
  const MOST = 16;
  const BURSTS = [1, 2, 3, 4, 6, 8];
  const WAITS = [2, 4, 6, 8, 12];

  const mean = (chances) => chances.reduce((sum, chance, count) => sum + count * chance, 0);
  const tokensPerCheck = (alpha, block) => alpha === 1 ? block + 1 : (1 - alpha ** (block + 1)) / (1 - alpha);
  const amdahl = (share, gain) => 1 / (1 - share + share / gain);
  const roundTime = (costs, block) => block * costs.draft + costs.verify(block) + costs.finalize;
  const speedup = (tar, costs, block, step) => step * tar / roundTime(costs, block);

  function acceptanceFor(tar, block) {
    let low = 0, high = 1;
    for (let turn = 0; turn < 60; turn++) {
      const middle = (low + high) / 2;
      if (tokensPerCheck(middle, block) < tar) low = middle; else high = middle;
    }
    return tar > 1 ? high : 0;
  }

  // Verifiers above verifiers: tokens that wait are deliveries of the level below, added up until there are enough.
  function gathered(delivery, every) {
    const waiting = [1, ...Array(every + delivery.length - 2).fill(0)];
    for (let start = 0; start < every; start++) {
      const before = waiting[start];
      waiting[start] = 0;
      delivery.forEach((chance, more) => { waiting[start + more] += before * chance; });
    }
    return waiting;
  }

  function delivered(waiting, alpha) {
    const found = Array(waiting.length + 1).fill(0);
    waiting.forEach((chance, count) => {
      for (let kept = 0; kept <= count; kept++) found[kept + 1] += chance * alpha ** kept * (kept === count ? 1 : 1 - alpha);
    });
    return found;
  }

  function nested(draft, levels) {
    let delivery = [...Array(levels[0].every).fill(0), 1], time = levels[0].every * draft;
    for (const level of levels) {
      const waiting = gathered(delivery, level.every);
      time *= mean(waiting) / mean(delivery);
      waiting.forEach((chance, count) => { if (chance) time += chance * level.check(count); });
      delivery = delivered(waiting, level.alpha);
    }
    return [mean(delivery), time];
  }

  const priced = (s, draft, rest, eager) => ({
    draft, verify: (k) => rest * s.step * (1 + s.slope * (k - eager)), finalize: eager * s.final * s.step,
  });
  const headed = (s, flash, eager) => priced(s, flash ? s.draft / amdahl(s.share, s.gain) : s.draft, 1, eager);
  const at = (s, flash, alpha, k) =>
    speedup(tokensPerCheck(flash ? alpha * (1 - s.loss) : alpha, k), headed(s, flash, 0), k, s.step);

  function best(alpha, costs, step) {
    let found = { speedup: 0, k: 1, wait: 0 };
    for (let k = 1; k <= MOST; k++) {
      const faster = speedup(tokensPerCheck(alpha, k), costs, k, step);
      if (faster > found.speedup) found = { speedup: faster, k, wait: 0 };
    }
    return found;
  }

  function hierarchy(s) {
    let found = { speedup: 0, k: 1, wait: 0 };
    for (const burst of BURSTS) for (const wait of WAITS) {
      const whole = { alpha: s.whole_alpha, every: wait, check: (rows) => s.whole_rest * s.step * (1 + s.slope * rows) };
      const [tokens, time] = nested(s.first, [{ alpha: s.middle_alpha, every: burst, check: () => s.middle }, whole]);
      if (s.step * tokens / time > found.speedup) found = { speedup: s.step * tokens / time, k: burst, wait };
    }
    return found;
  }

  function even(s, flash, k) {
    const tar = roundTime(headed(s, flash, 0), k) / s.step;
    const needed = tar > k + 1 ? null : acceptanceFor(tar, k), most = flash ? 1 - s.loss : 1;
    return needed === null || needed > most ? null : needed / most;
  }

  function decision(s) {
    const kept = s.alpha * (1 - s.loss), dense = headed(s, 0, 0), flash = headed(s, 1, 0);
    const slow = best(s.alpha, dense, s.step), fast = best(kept, flash, s.step);
    const won = fast.speedup > slow.speedup ? 1 : 0, top = won ? fast : slow;
    const matched = tokensPerCheck(s.alpha, slow.k) * roundTime(flash, slow.k) / roundTime(dense, slow.k);
    const exit = s.exits ? best(s.first_alpha, priced(s, s.first, s.first_rest, 0), s.step) : null;
    const deep = s.exits === 2 ? hierarchy(s) : null;
    return {
      plain: 1000 / s.step,
      dense: at(s, 0, s.alpha, s.k),
      flash: at(s, 1, s.alpha, s.k),
      even: even(s, won, s.k),
      even_best: even(s, won, top.k),
      dense_best: slow,
      flash_best: fast,
      flash_won: won,
      flash_gain: fast.speedup / slow.speedup,
      flash_even: acceptanceFor(matched, slow.k),
      deferral: top.speedup / best(won ? kept : s.alpha, headed(s, won, 1), s.step).speedup,
      exit,
      exit_gain: exit && exit.speedup / top.speedup,
      hierarchy: deep,
      hierarchy_gain: deep && deep.speedup / Math.max(top.speedup, exit.speedup),
    };
  }

  return { decision, at, MOST };
})();
