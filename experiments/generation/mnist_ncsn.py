"""One network of scores, two ways to samples: annealed Langevin dynamics and the VE equation.

Song & Ermon, 2019, arXiv:1907.05600, sample by Langevin steps at ten levels of noise; Song et al.,
2021, arXiv:2011.13456, go down the noise in continuous time, by its reverse equation with a corrector
or by its probability flow. All three ask the same network, trained by denoising at all levels.

Small: the network of `mnist_ddpm` without classes, 2,000 steps of 64 images, and 2,000 samples.

    opsin sweep mnist_ncsn
    opsin report mnist_ncsn
"""
